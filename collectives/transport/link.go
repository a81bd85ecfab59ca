package transport

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Link sends frames on a connection, in order, from one goroutine (Run). Sending never
// blocks: who sends must bound what is in flight, as the rounds of a group do.
type Link struct {
	sent atomic.Int64

	mu    sync.Mutex
	queue []item // guarded by mu
	over  bool   // guarded by mu: no more may be sent
	some  chan struct{}
}

type item struct {
	h       Header
	payload []byte
	written func()
	last    bool
}

// NewLink makes a link without a connection yet.
func NewLink() *Link { return &Link{some: make(chan struct{}, 1)} }

// Send queues a frame. The payload is not copied: it must not change until written is
// called, which happens on Run's goroutine, and never after an error.
func (l *Link) Send(h Header, payload []byte, written func()) {
	h.Length = uint32(len(payload))
	l.put(item{h: h, payload: payload, written: written})
}

// Finish queues a last frame, drops what is queued before it, and lets Run return after
// it; with a zero header nothing is dropped or written.
func (l *Link) Finish(h Header, payload []byte) {
	h.Length = uint32(len(payload))
	l.put(item{h: h, payload: payload, last: true})
}

func (l *Link) put(it item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return
	}
	if it.last {
		l.over = true
		if it.h.Kind != 0 {
			l.queue = l.queue[:0]
		}
	}
	l.queue = append(l.queue, it)
	select {
	case l.some <- struct{}{}:
	default:
	}
}

// Sent is how many bytes were given to the connection, headers included.
func (l *Link) Sent() int64 { return l.sent.Load() }

// join is the size up to which header and payload are written as one: a copy of that
// size costs less than a second packet or TLS record.
const join = 16 << 10

// Run writes frames to conn until Finish or an error.
func (l *Link) Run(conn net.Conn) error {
	var buf []byte
	var batch []item
	for {
		l.mu.Lock()
		batch, l.queue = l.queue, batch[:0]
		l.mu.Unlock()
		if len(batch) == 0 {
			<-l.some
			continue
		}
		for i, it := range batch {
			batch[i] = item{}
			if it.last {
				if it.h.Kind == 0 {
					return nil
				}
				_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			}
			var n int64
			var err error
			if len(it.payload) <= join {
				buf = append(it.h.Append(buf[:0]), it.payload...)
				var k int
				k, err = conn.Write(buf)
				n = int64(k)
			} else {
				bufs := net.Buffers{it.h.Append(buf[:0]), it.payload}
				n, err = bufs.WriteTo(conn)
			}
			l.sent.Add(n)
			if err != nil || it.last {
				return err
			}
			if it.written != nil {
				it.written()
			}
		}
	}
}
