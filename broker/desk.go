package broker

import (
	"context"
	"slices"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// comeWithin is how long a process that a command has just started waits for it to sit
// down before it takes it that nobody will.
const comeWithin = 15 * time.Second

// Desk is where questions to a person meet whoever sits at a terminal (wire.MsgAttend).
// Commands come and go; the newest that has a terminal is asked. It is safe for concurrent
// use.
type Desk struct {
	mu     sync.Mutex
	seats  []*seat       // the newest last; guarded by mu, as is what follows
	came   chan struct{} // closed when somebody has come, or nobody will
	number uint64        // of sittings
	asked  uint64        // questions
}

// seat is one command that attends.
type seat struct {
	at      wire.Attend
	st      *session.Stream
	gone    chan struct{}
	writing sync.Mutex

	mu    sync.Mutex
	waits map[uint64]chan wire.Answer // guarded by mu
}

// NewDesk makes a Desk with nobody at it. With awaited somebody is about to come, and
// questions of the first moments wait.
func NewDesk(awaited bool) *Desk {
	d := &Desk{came: make(chan struct{})}
	if awaited {
		time.AfterFunc(comeWithin, d.open)
	} else {
		d.open()
	}
	return d
}

// open lets those through who wait for somebody to come.
func (d *Desk) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.came:
	default:
		close(d.came)
	}
}

// Sitting says who is there.
func (d *Desk) Sitting(ctx context.Context) (number uint64, terminal, acceptNew bool) {
	select {
	case <-d.came:
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.seats {
		terminal, acceptNew = terminal || s.at.Terminal, acceptNew || s.at.AcceptNew
	}
	return d.number, terminal, acceptNew
}

// Attend serves a command that sits down, until it leaves. begun is called when it is
// there: what could not be asked before is worth another try then.
func (d *Desk) Attend(ctx context.Context, st *session.Stream, at wire.Attend, begun func()) error {
	s := &seat{at: at, st: st, gone: make(chan struct{}), waits: map[uint64]chan wire.Answer{}}
	d.mu.Lock()
	d.number++
	d.seats = append(d.seats, s)
	d.mu.Unlock()
	d.open()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.seats = slices.DeleteFunc(d.seats, func(o *seat) bool { return o == s })
		close(s.gone)
	}()
	begun()
	if err := s.say(wire.Prompt{}); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = st.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		typ, body, err := st.ReadMsg()
		if err != nil {
			return nil // it has left
		}
		var a wire.Answer
		if typ != wire.MsgAnswer {
			return errs.New(errs.Corrupt, "message %#x at a sitting", typ)
		}
		if err := wire.Unmarshal(body, &a); err != nil {
			return err
		}
		s.mu.Lock()
		if c := s.waits[a.Number]; c != nil {
			delete(s.waits, a.Number)
			c <- a
		}
		s.mu.Unlock()
	}
}

func (s *seat) say(p wire.Prompt) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	_ = s.st.SetWriteDeadline(time.Now().Add(headBound))
	return s.st.WriteMsg(wire.MsgOK, p)
}

// Ask shows a prompt at the newest terminal and gives what is typed.
func (d *Desk) Ask(ctx context.Context, prompt string, secret bool) (string, error) {
	d.mu.Lock()
	var s *seat
	for _, o := range d.seats {
		if o.at.Terminal {
			s = o
		}
	}
	d.asked++
	n := d.asked
	d.mu.Unlock()
	left := errs.New(errs.Unavailable, "there is no terminal to ask at").Hint("`launcher up SPEC` in a terminal asks again")
	if s == nil {
		return "", left
	}
	got := make(chan wire.Answer, 1)
	s.mu.Lock()
	s.waits[n] = got
	s.mu.Unlock()
	if s.say(wire.Prompt{Number: n, Text: prompt, Secret: secret}) != nil {
		return "", left
	}
	select {
	case a := <-got:
		if !a.OK {
			return "", errs.New(errs.Cancelled, "it was not answered")
		}
		return a.Text, nil
	case <-s.gone:
		return "", left
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.waits, n)
		s.mu.Unlock()
		_ = s.say(wire.Prompt{Number: n, Over: true})
		return "", context.Cause(ctx)
	}
}
