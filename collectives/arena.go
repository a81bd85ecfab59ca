package collectives

import (
	"os"
	"slices"
	"sync"

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

const punch = 1 << 20

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
	if size < 64<<10 { // asking costs more than such a buffer
	} else if room := shm.Room(); int64(size) > room {
		return 0, errs.New(errs.Exhausted, "a buffer of %s in the group's shared memory: %s of memory are left", wire.Bytes(int64(n)), wire.Bytes(room))
	}
	if err := reserve(a.file, int64(from), int64(size)); err != nil {
		return 0, errs.Wrap(errs.Exhausted, err, "a buffer of %s in the group's shared memory", wire.Bytes(int64(n)))
	}
	a.used = slices.Insert(a.used, i, extent{from, from + size})
	return from, nil
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
