package channel

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"launcher/internal/errs"
	"launcher/shm"
)

const (
	spin    = 50 * time.Microsecond
	vainMax = 63
	napMin  = time.Millisecond
	napMax  = 100 * time.Millisecond
)

// Value is what goes through a channel.
type Value struct {
	Kind Kind
	Form uint32 // docs/tasks.md section 2
	Data []byte
}

// Kind says whether a value is one.
type Kind uint32

// The kinds.
const (
	Plain   Kind = 0
	Failure Kind = 1 // an error value
)

// end is what both ends are. It is used by one goroutine.
type end struct {
	c     *Channel
	at    int // its block
	count uint32
	rest  int // waits to come that do not look again and again
	vain  int // how many the next failure of that costs
	large map[int]far
}

// far is memory of a slot's own.
type far struct {
	seg        *shm.Segment
	generation uint32
}

func (c *Channel) end(number int) (end, error) {
	e := end{c: c, at: block(number), large: map[int]far{}}
	if pid := int(c.word(e.at + atPID).Load()); pid != 0 && pid != os.Getpid() && e.there(e.at) {
		return e, errs.New(errs.Exists, "process %d has this end of the channel already", pid)
	}
	order.PutUint64(c.mem[e.at+atBegan:], began(os.Getpid()))
	c.word(e.at + atPID).Store(uint32(os.Getpid()))
	e.count = c.word(e.at + atCount).Load()
	return e, nil
}

// there says whether the process of a party lives, or is yet to come.
func (e *end) there(at int) bool {
	pid := int(e.c.word(at + atPID).Load())
	return pid == 0 || pid == os.Getpid() || began(pid) == order.Uint64(e.c.mem[at+atBegan:])
}

// wait returns when the count of the party at is another than value.
//
// It looks again and again for a moment, the more rarely the more often that was in vain:
// the other side may need this very core. Then it sleeps in the kernel, shortly: to see
// whether the other side is there still.
func (e *end) wait(ctx context.Context, at int, value uint32) error {
	c := e.c
	count := c.word(at + atCount)
	if e.rest > 0 {
		e.rest--
	} else {
		for begin := time.Now(); time.Since(begin) < spin; {
			for range 64 {
				if count.Load() != value {
					e.vain = 0
					return nil
				}
			}
		}
		e.vain = min(2*e.vain+1, vainMax)
		e.rest = e.vain
	}
	asleep := c.word(e.at + atAsleep)
	asleep.Store(1)
	defer asleep.Store(0)
	for nap := napMin; count.Load() == value; nap = min(2*nap, napMax) {
		if c.word(atClosed).Load() != 0 {
			return errs.New(errs.Lost, "the channel is closed")
		}
		if err := ctx.Err(); err != nil {
			return errs.Wrap(errs.KindOf(err), err, "waiting at a channel")
		}
		left := nap
		if d, ok := ctx.Deadline(); ok {
			left = min(left, max(time.Until(d), time.Microsecond))
		}
		if !shm.FutexWait(c.raw(at+atCount), value, left) && nap == napMax && !e.there(at) && count.Load() == value {
			return errs.New(errs.Lost, "process %d at the other end of the channel is gone", c.word(at+atPID).Load())
		}
	}
	return nil
}

// publish makes the count known to those that sleep on it.
func (e *end) publish(count uint32, others ...int) {
	e.count = count
	e.c.word(e.at + atCount).Store(count)
	for _, at := range others {
		if e.c.word(at+atAsleep).Load() != 0 {
			shm.FutexWake(e.c.raw(e.at+atCount), 1<<30)
			return
		}
	}
}

// Writer is the end that writes.
type Writer struct {
	end
	readers    []int
	generation uint32
}

// Writer is the writing end, of one process only.
func (c *Channel) Writer() (*Writer, error) {
	e, err := c.end(0)
	if err != nil {
		return nil, err
	}
	w := &Writer{end: e}
	for i := range c.readers {
		w.readers = append(w.readers, block(i+1))
	}
	return w, nil
}

// Write writes a value. It waits while all slots have values that a reader has not let go of.
func (w *Writer) Write(ctx context.Context, v Value) error {
	c := w.c
	if c.word(atClosed).Load() != 0 {
		return errs.New(errs.Lost, "the channel is closed")
	}
	for _, at := range w.readers {
		for {
			done := c.word(at + atCount).Load()
			if w.count-done < uint32(c.slots) {
				break
			}
			if err := w.wait(ctx, at, done); err != nil {
				return err
			}
		}
	}
	s := c.slot(w.count)
	var fd, generation uint32
	if len(v.Data) <= len(s)-party {
		copy(s[party:], v.Data)
	} else {
		f, err := w.room(int(w.count%uint32(c.slots)), len(v.Data))
		if err != nil {
			return err
		}
		copy(f.seg.Bytes(), v.Data)
		fd, generation = uint32(f.seg.File().Fd())+1, f.generation
	}
	order.PutUint64(s, uint64(len(v.Data)))
	order.PutUint32(s[8:], uint32(v.Kind))
	order.PutUint32(s[12:], v.Form)
	order.PutUint32(s[16:], fd)
	order.PutUint32(s[20:], generation)
	w.publish(w.count+1, w.readers...)
	return nil
}

// room is memory for a value that is too large for its slot.
func (w *Writer) room(slot, size int) (far, error) {
	f, ok := w.large[slot]
	if ok && len(f.seg.Bytes()) >= size {
		return f, nil
	}
	seg, err := shm.Create("launcher-channel", size+size/4)
	if err != nil {
		return far{}, err
	}
	if ok {
		f.seg.Close()
	}
	w.generation++
	w.large[slot] = far{seg, w.generation}
	return w.large[slot], nil
}

// Reader is an end that reads.
type Reader struct {
	end
	taken bool
}

// Reader is a reading end, of one process only.
func (c *Channel) Reader(i int) (*Reader, error) {
	if i < 0 || i >= c.readers {
		return nil, errs.New(errs.Invalid, "there is no reader %d: the channel has %d", i, c.readers)
	}
	e, err := c.end(i + 1)
	if err != nil {
		return nil, err
	}
	return &Reader{end: e}, nil
}

// Read gives the next value. Its data lies in the channel: it is good until the next Read or
// Release, and must not be changed.
func (r *Reader) Read(ctx context.Context) (Value, error) {
	c := r.c
	r.Release()
	if c.word(block(0)+atCount).Load() == r.count {
		if err := r.wait(ctx, block(0), r.count); err != nil {
			return Value{}, err
		}
	}
	s := c.slot(r.count)
	size, fd := order.Uint64(s), order.Uint32(s[16:])
	v := Value{Kind: Kind(order.Uint32(s[8:])), Form: order.Uint32(s[12:])}
	data := s[party:]
	if fd != 0 {
		var err error
		if data, err = r.far(int(r.count%uint32(c.slots)), fd-1, order.Uint32(s[20:])); err != nil {
			return Value{}, err
		}
	}
	if size > uint64(len(data)) {
		return Value{}, errs.New(errs.Corrupt, "a value of %d bytes in a place of %d", size, len(data))
	}
	v.Data = data[:size:size]
	r.taken = true
	return v, nil
}

// Release lets go of the value that was read last.
func (r *Reader) Release() {
	if r.taken {
		r.taken = false
		r.publish(r.count+1, block(0))
	}
}

func (r *Reader) far(slot int, fd, generation uint32) ([]byte, error) {
	known, ok := r.large[slot]
	if ok && known.generation == generation {
		return known.seg.Bytes(), nil
	}
	pid := atomic.LoadUint32(r.c.raw(block(0) + atPID))
	f, err := os.Open(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if err != nil {
		return nil, errs.Wrap(errs.Lost, err, "the writer of the channel is gone")
	}
	seg, err := shm.Open(f, false)
	if err != nil {
		f.Close()
		return nil, err
	}
	if ok {
		known.seg.Close()
	}
	r.large[slot] = far{seg, generation}
	return seg.Bytes(), nil
}
