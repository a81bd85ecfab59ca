package launcher

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"launcher/shm"
	"launcher/shm/objects"

	"launcher/wire/sdk"
)

// spaceBound is how long a Put waits for memory to become free, at most.
const spaceBound = 60 * time.Second

// sealFutureWrite lets nobody map a file for writing who has not yet.
const sealFutureWrite = 0x10

// store is the node's shared memory as this process sees it: the index and the segments
// of all, which it reads, and segments of its own, which it fills.
type store struct {
	index   *objects.Index
	pins    *objects.Pins
	shared  *shm.Segment // control page of a worker
	control []uint32
	known   [3]os.FileInfo // the files of these: they stay over reconnects

	segments atomic.Pointer[map[uint32]*shm.Segment] // replaced, never changed

	mu     sync.Mutex // guards what follows; taken within the client's mu
	arena  objects.Arena
	mine   map[uint32]bool          // segments of the arena
	opened map[uint32]chan struct{} // closed when a segment that was asked for is there
	grants chan struct{}            // closed at the next Granted
	full   error                    // what that one said
}

// pin is a hold on a value in shared memory; the zero value is one on nothing. It is
// released once.
type pin struct {
	pins *objects.Pins
	n    objects.Pin
}

func (p pin) held() bool { return p.pins != nil }

func (p pin) release() {
	if p.held() {
		p.pins.Release(p.n)
	}
}

// place is where in shared memory a value lies.
type place struct {
	segment uint32
	offset  uint64
}

// attach takes the descriptors of a Welcome. A new agent gives those that there were:
// what this process has mapped and pinned stays.
func (s *store) attach(f *frames, worker bool) error {
	n := 2
	if worker {
		n = 3
	}
	if len(f.files) == 0 {
		return nil // the node has no memory for objects
	}
	for i := range n {
		file, err := f.file()
		if err != nil {
			return err
		}
		st, err := file.Stat()
		if err == nil && s.known[i] != nil && os.SameFile(st, s.known[i]) {
			file.Close()
			continue
		}
		if err == nil {
			switch i {
			case 0:
				s.index, err = objects.OpenIndex(file)
			case 1:
				s.pins, err = objects.OpenPins(file)
			case 2:
				if s.shared, err = shm.Open(file, true); err == nil {
					b := s.shared.Bytes()
					s.control = unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
				}
			}
		}
		if err != nil {
			file.Close()
			return err
		}
		s.known[i] = st
	}
	return nil
}

// pin finds a value in shared memory and holds it there. With neither a hold nor an error
// it is not there: the agent has to be asked.
func (s *store) pin(ctx context.Context, c *client, id objectID) (form uint8, data []byte, p pin, err error) {
	if s.index == nil {
		return 0, nil, pin{}, nil
	}
	e, n, ok, err := s.pins.Get(s.index, id)
	if !ok {
		return 0, nil, pin{}, err
	}
	p = pin{s.pins, n}
	seg, err := s.segment(ctx, c, e.Segment)
	if err == nil {
		data, err = e.Of(seg.Bytes())
	}
	if err != nil {
		p.release()
		return 0, nil, pin{}, err
	}
	return uint8(e.Form), data, p, nil
}

// segment gives a segment, which it asks the agent for when it is new here.
func (s *store) segment(ctx context.Context, c *client, n uint32) (*shm.Segment, error) {
	for {
		if m := s.segments.Load(); m != nil && (*m)[n] != nil {
			return (*m)[n], nil
		}
		s.mu.Lock()
		there, asked := s.opened[n]
		if !asked {
			there = make(chan struct{})
			if s.opened == nil {
				s.opened = map[uint32]chan struct{}{}
			}
			s.opened[n] = there
		}
		s.mu.Unlock()
		if !asked {
			c.mu.Lock()
			c.out.begin(sdk.MsgOpenSegment)
			c.out.u32(n)
			c.out.close()
			c.mu.Unlock()
			c.flush()
		}
		select {
		case <-there:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.lost:
			return nil, c.goneFor()
		}
	}
}

// add makes a mapped segment known; mu must be held.
func (s *store) add(n uint32, seg *shm.Segment) {
	m := map[uint32]*shm.Segment{}
	if old := s.segments.Load(); old != nil {
		m = maps.Clone(*old)
	}
	if seg == nil {
		delete(m, n)
	} else {
		m[n] = seg
	}
	s.segments.Store(&m)
}

// write copies a value into shared memory.
func (s *store) write(ctx context.Context, c *client, data []byte) (place, error) {
	deadline := time.Now().Add(spaceBound)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	timeout := time.NewTimer(time.Until(deadline) + time.Second) // the agent answers before
	defer timeout.Stop()
	for {
		s.mu.Lock()
		e, fresh, ok := s.arena.Alloc(int64(len(data)))
		if ok {
			seg := (*s.segments.Load())[e.Segment]
			s.mu.Unlock()
			objects.Copy(seg.Bytes()[e.Offset:], data, fresh)
			return place{e.Segment, uint64(e.Offset)}, nil
		}
		if s.grants == nil {
			s.grants, s.full = make(chan struct{}), nil
		}
		granted := s.grants
		s.mu.Unlock()
		c.mu.Lock()
		c.out.begin(sdk.MsgSpace)
		c.out.u64(uint64(objects.RoundUp(int64(len(data)))), uint64(max(time.Until(deadline).Milliseconds(), 1)))
		c.out.close()
		c.mu.Unlock()
		c.flush()
		select {
		case <-granted:
			s.mu.Lock()
			err := s.full
			s.mu.Unlock()
			if err != nil {
				return place{}, err
			}
		case <-timeout.C:
			return place{}, ErrFull
		case <-ctx.Done():
			return place{}, ctx.Err()
		case <-c.lost:
			return place{}, c.goneFor()
		}
	}
}

// askAgain has those ask again who wait for room: the agent was restarted.
func (s *store) askAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grants != nil {
		close(s.grants)
		s.grants = nil
	}
}

// undo gives room back that a value was written to in vain.
func (s *store) undo(at place, size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.arena.Free(objects.Extent{Segment: at.segment, Offset: int64(at.offset), Length: int64(size)})
}

// handle acts on a frame about memory; the client's mu must be held.
func (s *store) handle(c *client, f *frames, typ uint16, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case typ == sdk.MsgSegment && len(body) >= 12:
		n := binary.LittleEndian.Uint32(body)
		return s.take(f, n, false)
	case typ == sdk.MsgDropSegment && len(body) >= 4:
		n := binary.LittleEndian.Uint32(body)
		m := s.segments.Load()
		if s.mine[n] && !s.arena.Drop(n) {
			return nil // something is written there now
		}
		delete(s.mine, n)
		c.out.begin(sdk.MsgDropped)
		c.out.u32(n)
		c.out.close()
		c.nudge()
		if m == nil || (*m)[n] == nil {
			return nil
		}
		seg := (*m)[n]
		s.add(n, nil)
		return seg.Close()
	case typ == sdk.MsgGranted && len(body) >= 4:
		return s.granted(f, binary.LittleEndian.Uint32(body), body[4:])
	}
	return short("memory")
}

// take maps a segment that came with a frame; mu must be held.
func (s *store) take(f *frames, n uint32, mine bool) error {
	file, err := f.file()
	if err != nil {
		return err
	}
	if m := s.segments.Load(); m != nil && (*m)[n] != nil {
		return file.Close()
	}
	seg, err := shm.Open(file, mine)
	if err != nil {
		file.Close()
		return err
	}
	if mine {
		if err := shm.Seal(file, sealFutureWrite); err != nil {
			seg.Close()
			return err
		}
		if s.mine == nil {
			s.mine = map[uint32]bool{}
		}
		s.mine[n] = true
	}
	s.add(n, seg)
	if there := s.opened[n]; there != nil {
		close(there)
		delete(s.opened, n)
	}
	return nil
}

// granted takes in memory to fill; mu must be held.
func (s *store) granted(f *frames, what uint32, body []byte) error {
	switch {
	case what == 1 && len(body) >= 12:
		n := binary.LittleEndian.Uint32(body)
		if err := s.take(f, n, true); err != nil {
			return err
		}
		s.arena.Add(n, int64(len((*s.segments.Load())[n].Bytes())))
	case what == 2 && len(body) >= 4:
		count := int(binary.LittleEndian.Uint32(body))
		if len(body)-4 < 24*count {
			return short("Granted")
		}
		for i := range count {
			b := body[4+24*i:]
			e := objects.Extent{Segment: binary.LittleEndian.Uint32(b), Offset: int64(binary.LittleEndian.Uint64(b[8:])), Length: int64(binary.LittleEndian.Uint64(b[16:]))}
			if err := s.arena.Free(e); err != nil {
				return err
			}
		}
	case what == 3:
		if s.full = decodeFailure(body); !errors.Is(s.full, ErrFull) {
			s.full = fmt.Errorf("%w: %w", ErrFull, s.full)
		}
	default:
		return short("Granted")
	}
	if s.grants != nil {
		close(s.grants)
		s.grants = nil
	}
	return nil
}
