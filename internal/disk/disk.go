// Package disk makes what is written outlive the machine.
package disk

import (
	"errors"
	"os"
	"syscall"
)

// Sync makes a file safe, or the names in a directory. Some file systems (AFS, folders that a
// virtual machine shares) cannot sync a directory: what they have there is as safe as it gets.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
