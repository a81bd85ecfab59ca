//go:build !linux

package collectives

import (
	"os"
	"runtime"
	"unsafe"

	"launcher/internal/errs"
)

func sizeFile(f *os.File, reserved, size int64) error {
	return errs.New(errs.Unbuilt, "shared memory: only on Linux")
}

func reserve(f *os.File, at, n int64) error {
	return errs.New(errs.Unbuilt, "shared memory: only on Linux")
}

func lock(f *os.File) func() { return func() {} }

func release(f *os.File, at, n int64)  {}
func populate(p unsafe.Pointer, n int) {}
func yield()                           { runtime.Gosched() }

func alive(pid uint32) bool { return false }
