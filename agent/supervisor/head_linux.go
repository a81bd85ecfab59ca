package supervisor

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"launcher/agent/proc"
	"launcher/internal/errs"
	"launcher/internal/logx"
	"launcher/wire"
)

// HeadMain is the supervisor of a head (command `head-supervise`): it keeps
// `head --dir DIR` alive and its listeners open, so that a new head answers on the same
// port. It ends when the head ends with ExitDone (the cluster is down) or ExitFatal, and
// takes the head with it when it is killed. A second one for the same directory is
// refused (errs.Exists). Like Main it returns only errors from before the first start.
func HeadMain(ctx context.Context, dir string) error {
	small()
	proc.SealFDs()
	runtime.LockOSThread()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "the state directory")
	}
	held, err := lock(filepath.Join(dir, "head.lock"), 0)
	if err != nil {
		return err
	}
	defer held.Close() // only on errors: the lock is held to the end of the process
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return errs.Wrap(errs.Unavailable, err, "becoming sub-reaper")
	}
	exe, err := ownBinary()
	if err != nil {
		return err
	}
	log := filepath.Join(dir, "head.log")
	fd, err := openLog(log)
	if err != nil {
		return errs.Wrap(errs.Permission, err, "the head's log %s", log)
	}
	s, err := newServer(logx.New(os.NewFile(uintptr(fd), log), slog.LevelInfo).With("part", "supervisor"), nil, "")
	if err != nil {
		return err
	}
	if listens(AgentFD) {
		unix.CloseOnExec(AgentFD)
		s.fds[wire.KeptGiven] = AgentFD
	}
	return s.run(ctx, life{name: "head", argv: []string{exe, "head", "--dir", dir}, env: os.Environ(), logPath: log}, nil)
}

// listens reports whether a descriptor that we were started with is a listening socket.
func listens(fd int) bool {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && n == 1
}
