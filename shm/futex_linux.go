package shm

import (
	"math"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	futexWait = 0 // without FUTEX_PRIVATE_FLAG: the word is shared between processes
	futexWake = 1
)

// FutexWait sleeps while *addr == val, at most timeout, until a FutexWake on the same
// word of shared memory. It gives false when the time ran out, true otherwise; true may
// be spurious, so callers look at the word again. A timeout of zero or less only looks.
//
// The wait is a system call that the Go scheduler knows of: other goroutines of this
// process run on.
func FutexWait(addr *uint32, val uint32, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	for left := timeout; ; left = time.Until(deadline) {
		if atomic.LoadUint32(addr) != val {
			return true
		}
		if left <= 0 {
			return false
		}
		ts := unix.NsecToTimespec(left.Nanoseconds())
		_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(addr)), futexWait, uintptr(val), uintptr(unsafe.Pointer(&ts)), 0, 0)
		runtime.KeepAlive(addr)
		switch errno {
		case unix.ETIMEDOUT:
			return atomic.LoadUint32(addr) != val
		case unix.EINTR: // the Go runtime preempts by signal; only the time left counts
			continue
		default: // 0: woken; EAGAIN: the word had changed
			return true
		}
	}
}

// FutexWake wakes up to n waiters on the word, in any process that maps it, and gives
// how many it woke.
func FutexWake(addr *uint32, n int) int {
	if n > math.MaxInt32 {
		n = math.MaxInt32
	}
	// A wake never blocks, so the scheduler need not hear of it.
	r, _, errno := unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(addr)), futexWake, uintptr(n), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(r)
}
