//go:build !linux

package objects

import (
	"iter"
	"os"

	"launcher/internal/errs"
)

// sparse is not there on this system: nodes are Linux machines.
func sparse(name string, size int64) (*os.File, error) {
	return nil, errs.New(errs.Unbuilt, "%s: shared memory is only on Linux", name)
}

func used(f *os.File, size int) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) { yield(0, size) }
}

func populate(b []byte) {}
