//go:build !linux

package shm

import (
	"net"
	"os"
	"sync/atomic"
	"time"

	"launcher/internal/errs"
)

// MaxFDs bounds the descriptors of one message.
const MaxFDs = 64

// Segment is shared memory; only Linux nodes have it.
type Segment struct{}

func unbuilt() error {
	return errs.New(errs.Unbuilt, "shared memory: only on Linux").Hint("run this part on a Linux node of the cluster")
}

// Create is not there on this system.
func Create(name string, size int) (*Segment, error) { return nil, unbuilt() }

// CreateFile is not there on this system.
func CreateFile(name string) (*os.File, error) { return nil, unbuilt() }

// CreateSized is not there on this system.
func CreateSized(name string, size int64, reserve bool) (*os.File, error) { return nil, unbuilt() }

// Open is not there on this system.
func Open(f *os.File, writable bool) (*Segment, error) { return nil, unbuilt() }

// Seal is not there on this system.
func Seal(f *os.File, seals int) error { return unbuilt() }

// Bytes is the mapped memory.
func (s *Segment) Bytes() []byte { return nil }

// File is the descriptor to pass on.
func (s *Segment) File() *os.File { return nil }

// Prefault makes every page present.
func (s *Segment) Prefault() {}

// Close unmaps and closes.
func (s *Segment) Close() error { return nil }

// FutexWait polls: there is no shared futex here.
func FutexWait(addr *uint32, val uint32, timeout time.Duration) bool {
	for deadline := time.Now().Add(timeout); atomic.LoadUint32(addr) == val; time.Sleep(50 * time.Microsecond) {
		if !time.Now().Before(deadline) {
			return false
		}
	}
	return true
}

// FutexWake has nobody to wake: waiters poll.
func FutexWake(addr *uint32, n int) int { return 0 }

// SendFDs is not there on this system.
func SendFDs(conn *net.UnixConn, b []byte, files ...*os.File) error { return unbuilt() }

// RecvFDs is not there on this system.
func RecvFDs(conn *net.UnixConn, b []byte) (int, []*os.File, error) { return 0, nil, unbuilt() }

// ParseFDs is not there on this system.
func ParseFDs(oob []byte) ([]*os.File, error) { return nil, unbuilt() }

// PeerUID is not there on this system.
func PeerUID(conn *net.UnixConn) (uid, pid int, err error) { return -1, 0, unbuilt() }

// Room is how many bytes of memory may still be taken; unknown here.
func Room() int64 { return 1 << 62 }
