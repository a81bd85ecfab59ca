//go:build unix

package dial

import (
	"os"
	"syscall"
)

// lockFile waits for the exclusive lock of a file, which closing it gives back. Its
// holders write one line and go.
func lockFile(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }

// ownGroup starts a command in a process group of its own, away from the terminal's
// signals.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

func killGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) }

// openFifo makes a named pipe and opens it for reading; it is at its end when closed.
func openFifo(path string) (*os.File, error) {
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
}
