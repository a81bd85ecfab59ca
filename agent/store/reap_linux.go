package store

import (
	"time"

	"golang.org/x/sys/unix"

	"launcher/shm/objects"
)

const (
	// heldEvery is how often the pins of freed objects are looked at again.
	heldEvery = 50 * time.Millisecond
	// settle stands for the barrier where the kernel has none: stores leave a CPU's
	// buffer in far less.
	settle = 20 * time.Millisecond
)

// barrier returns when every CPU has passed a memory barrier: a pin that was stored
// before its owner read an entry as sealed can be seen then. It takes some milliseconds.
func barrier() {
	const global = 1 << 0 // MEMBARRIER_CMD_GLOBAL
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		time.Sleep(settle)
	}
}

// pinned collects what programs have pinned. mu must be held.
func (s *Store) pinned() map[objects.PinKey]bool {
	pins := map[objects.PinKey]bool{}
	for _, c := range s.clients {
		c.pins.Scan(func(k objects.PinKey) { pins[k] = true })
	}
	return pins
}

// reaper frees the memory of objects whose entries are marked.
func (s *Store) reaper() {
	for {
		var again <-chan time.Time
		s.mu.Lock()
		if len(s.held) > 0 {
			again = time.After(heldEvery)
		}
		s.mu.Unlock()
		select {
		case <-s.ctx.Done():
			return
		case <-s.reap:
		case <-again:
		}
		s.mu.Lock()
		s.reaping, s.dying = s.dying, nil
		fresh := len(s.reaping) > 0
		s.mu.Unlock()
		if fresh {
			barrier()
		}
		s.mu.Lock()
		s.finish()
		s.mu.Unlock()
	}
}

// finish lets go of those that nobody has pinned. mu must be held.
func (s *Store) finish() {
	list := append(s.reaping, s.held...)
	s.reaping, s.held = nil, nil
	if len(list) == 0 {
		return
	}
	pins := s.pinned()
	for _, o := range list {
		if o.views > 0 || pins[o.pin] {
			s.held = append(s.held, o)
			continue
		}
		s.vacate(o)
	}
	s.serveAll()
}
