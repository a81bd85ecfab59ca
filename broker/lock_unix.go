package broker

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
)

// takeLock locks path for as long as the file is open; errs.Exists when another process
// has it. Where the file system knows no locks the socket alone decides.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, errs.Wrap(errs.Permission, err, "the link's lock")
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, errs.New(errs.Exists, "another link serves this cluster")
	}
	return f, nil
}
