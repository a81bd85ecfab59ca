//go:build !linux

package objects

import (
	"iter"
	"os"
)

func used(f *os.File, size int) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) { yield(0, size) }
}

func populate(b []byte) {}
