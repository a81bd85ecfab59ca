package supervisor

import (
	"context"
	"log/slog"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"launcher/agent/proc"
	"launcher/internal/errs"
	"launcher/internal/logx"
)

// ServeProcesses is a supervisor without an agent of its own, for tests and benchmarks
// of what uses a Client: each connection to the listening SEQPACKET socket is the next
// life of the agent. When the other end of alive is closed it kills everything below
// itself and exits the process; it does not return otherwise.
func ServeProcesses(listener int, alive *os.File, config []byte) error {
	small()
	proc.SealFDs()
	ignoreNothing()
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	s, err := newServer(logx.New(os.Stderr, slog.LevelWarn), config, "")
	if err != nil {
		return err
	}
	go func() {
		_, _ = alive.Read(make([]byte, 1))
		s.die(0, life{})
	}()
	go s.reap()
	for restarts := uint32(0); ; restarts++ {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		s.serve(fd, restarts)
	}
}

// Dial connects to the socket that ServeProcesses listens on.
func Dial(ctx context.Context, path string) (*Client, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "connecting to the process server")
	}
	return connectFD(ctx, fd)
}
