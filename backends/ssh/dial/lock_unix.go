//go:build unix

package dial

import (
	"os"
	"syscall"
)

// lockFile waits for the exclusive lock of a file, which closing it gives back. Its
// holders write one line and go.
func lockFile(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }
