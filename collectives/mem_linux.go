package collectives

import (
	"errors"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"launcher/shm"
)

// sizeFile reserves the first bytes of f and makes it size bytes long for good.
func sizeFile(f *os.File, reserved, size int64) error {
	if err := unix.Ftruncate(int(f.Fd()), size); err != nil {
		return err
	}
	if err := reserve(f, 0, reserved); err != nil {
		return err
	}
	return shm.Seal(f, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
}

// reserve takes memory for a stretch of f now, so that touching it cannot fail later.
func reserve(f *os.File, at, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, n)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// lock lets no other process of the group take memory until the function that it gives
// is called. A process that was stopped while it had the lock must not hold up the others
// for ever: after takeBound they go on without.
func lock(f *os.File) func() {
	l := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	for end := time.Now().Add(takeBound); ; time.Sleep(time.Millisecond) {
		err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &l)
		if err == nil {
			return func() {
				l.Type = unix.F_UNLCK
				_ = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &l)
			}
		}
		if err != unix.EAGAIN && err != unix.EACCES && err != unix.EINTR || time.Now().After(end) {
			return func() {}
		}
	}
}

// release gives the memory of a stretch of f back to the system; it reads as zeros then.
func release(f *os.File, at, n int64) {
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, at, n)
}

// populate makes the pages of a stretch of mapped memory present in this process. It is
// a matter of speed only.
func populate(p unsafe.Pointer, n int) {
	if n == 0 {
		return
	}
	b := unsafe.Slice((*byte)(p), n)
	for unix.Madvise(b, unix.MADV_POPULATE_WRITE) == unix.EINTR {
	}
}

// yield lets another thread have this core.
func yield() { unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
