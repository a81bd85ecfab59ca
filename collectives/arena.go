package collectives

import (
	"os"
	"slices"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
)

// arena hands out stretches of a rank's part of the shared memory: first fit, in steps
// of arenaStep bytes. Memory that was taken once stays reserved for the rank until it is
// given back in pieces of at least punch bytes.
type arena struct {
	file     *os.File
	at, size uint64

	mu   sync.Mutex
	used []extent // in order
}

type extent struct{ from, to uint64 } // offsets in the memory

const (
	punch      = 1 << 20
	takePiece  = int64(16 << 20)
	takeMargin = int64(32 << 20)
	takeBound  = time.Minute // how long another process may hold up taking memory
)

func (a *arena) take(n int) (off uint64, err error) {
	step := uint64(128)
	if n >= 256<<10 {
		step = pageSize
	}
	size := align(max(uint64(n), 1), step)
	a.mu.Lock()
	defer a.mu.Unlock()
	from, i := a.at, 0
	for ; i <= len(a.used); i++ {
		from = align(from, step)
		end := a.at + a.size
		if i < len(a.used) {
			end = a.used[i].from
		}
		if from <= end && size <= end-from {
			break
		}
		if i == len(a.used) {
			return 0, errs.New(errs.Exhausted, "a buffer of %s in the group's shared memory: the limit of a rank is %s", wire.Bytes(int64(n)), wire.Bytes(int64(a.size))).
				Hint("give buffers back that are not needed any more, or use ordinary memory")
		}
		from = a.used[i].to
	}
	if err := a.reserve(int64(from), int64(size)); err != nil {
		return 0, errs.Wrap(errs.Exhausted, err, "a buffer of %s in the group's shared memory", wire.Bytes(int64(n)))
	}
	a.used = slices.Insert(a.used, i, extent{from, from + size})
	return from, nil
}

// reserve takes memory in pieces, each only while the rest of it and some margin still
// fit, and as the only process of the group: the kernel answers taking more than there
// is by killing a process.
func (a *arena) reserve(at, size int64) error {
	defer lock(a.file)()
	margin := int64(0)
	if size >= takeMargin {
		margin = takeMargin
	}
	for done := int64(0); done < size; {
		if size < 64<<10 { // asking costs more than such a buffer
		} else if room := shm.Room(); size-done+margin > room {
			release(a.file, at, done)
			return errs.New(errs.Exhausted, "%s of memory are left", wire.Bytes(room)).
				Hint("give buffers back that are not needed any more, use fewer ranks per node, or give the job more memory")
		}
		n := min(takePiece, size-done)
		if err := reserve(a.file, at+done, n); err != nil {
			release(a.file, at, done)
			return err
		}
		done += n
	}
	return nil
}

func (a *arena) give(off uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.used, func(e extent) bool { return e.from == off })
	if i < 0 {
		return
	}
	e := a.used[i]
	a.used = slices.Delete(a.used, i, i+1)
	if e.to-e.from >= punch { // page-aligned, as take made it
		release(a.file, int64(e.from), int64(e.to-e.from))
	}
}
