//go:build unix

package main

import (
	"context"
	"os"
	"syscall"
	"time"

	"launcher/internal/errs"
)

// detached puts a process into a session of its own, so that neither our terminal nor
// our end reaches it.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// lockBound is how long one command waits for another that works on the same cluster.
const lockBound = 2 * time.Minute

// lockFile takes an exclusive lock that ends with the file or with us.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(lockBound)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch err {
		case nil, syscall.ENOSYS, syscall.ENOTSUP, syscall.ENOLCK: // a file system without locks: go on without
			return f, nil
		case syscall.EWOULDBLOCK, syscall.EINTR:
		default:
			_ = f.Close()
			return nil, err
		}
		if time.Now().After(end) {
			_ = f.Close()
			return nil, errs.New(errs.Timeout, "another launcher command works on this cluster").Hint("it holds %s", path)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
