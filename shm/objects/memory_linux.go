package objects

import (
	"iter"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// used gives the stretches of a file that have pages. Reading a hole would fill it.
func used(f *os.File, size int) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for at := int64(0); at < int64(size); {
			from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
			if err != nil { // ENXIO: no more
				return
			}
			to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
			if err != nil || to > int64(size) {
				to = int64(size)
			}
			if !yield(int(from), int(to)) || to <= from {
				return
			}
			at = to
		}
	}
}

// populate enters pages of a shared mapping into this process's tables, all at once:
// a fraction of the cost of a fault for each. Only speed depends on it.
func populate(b []byte) {
	if len(b) == 0 {
		return
	}
	lead := int(uintptr(unsafe.Pointer(&b[0])) & 4095)
	whole := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(&b[0]), -lead)), lead+len(b))
	_ = unix.Madvise(whole, unix.MADV_POPULATE_WRITE)
}
