package broker

import (
	"context"
	"path/filepath"
	"testing"

	"launcher/internal/errs"
	"launcher/internal/sockpath"
	"launcher/wire"
	"launcher/wire/secure"
	"launcher/wire/session"
)

// room is a desk and how commands come to it.
type room struct {
	*testing.T
	d    *Desk
	path string
	came chan struct{} // one for each that has sat down
	left chan struct{} // and that has left
}

func newRoom(t *testing.T, d *Desk) *room {
	t.Helper()
	r := &room{T: t, d: d, path: filepath.Join(t.TempDir(), "s"), came: make(chan struct{}, 10), left: make(chan struct{}, 10)}
	ln, err := sockpath.Listen(r.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- session.ServeUnix(ctx, ln, session.Config{Cluster: "lab", Role: secure.RoleHead, Name: "head"}, func(ctx context.Context, s *session.Session) {
			_, st, err := s.Accept(ctx)
			if err != nil {
				return
			}
			_, body, err := st.ReadMsg()
			var at wire.Attend
			if err != nil || wire.Unmarshal(body, &at) != nil {
				return
			}
			_ = r.d.Attend(ctx, st, at, func() { r.came <- struct{}{} })
			r.left <- struct{}{}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

// sit sends a command in and gives its stream, past the beginning.
func (r *room) sit(at wire.Attend) (st *session.Stream, leave func()) {
	r.Helper()
	s, err := session.DialUnix(bounded(r.T), r.path, session.Config{Role: secure.RoleClient, Name: "up"})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { s.Close() })
	if st, err = s.Open(bounded(r.T), wire.StreamRequest); err != nil {
		r.Fatal(err)
	}
	if err := st.WriteMsg(wire.MsgAttend, at); err != nil {
		r.Fatal(err)
	}
	if p := r.prompt(st); p != (wire.Prompt{}) {
		r.Fatalf("the sitting begins with %+v", p)
	}
	<-r.came
	return st, func() { s.Close(); <-r.left }
}

func (r *room) prompt(st *session.Stream) (p wire.Prompt) {
	r.Helper()
	typ, body, err := st.ReadMsg()
	if err != nil || typ != wire.MsgOK {
		r.Fatalf("message %#x, %v", typ, err)
	}
	if err := wire.Unmarshal(body, &p); err != nil {
		r.Fatal(err)
	}
	return p
}

type told struct {
	text string
	err  error
}

func (r *room) ask(ctx context.Context, prompt string) <-chan told {
	c := make(chan told, 1)
	go func() {
		text, err := r.d.Ask(ctx, prompt, true)
		c <- told{text, err}
	}()
	return c
}

func TestDesk(t *testing.T) {
	r := newRoom(t, NewDesk(false))
	if _, err := r.d.Ask(bounded(t), "q", false); !errs.Is(err, errs.Unavailable) {
		t.Errorf("with nobody there: %v", err)
	}
	if n, terminal, accept := r.d.Sitting(bounded(t)); n != 0 || terminal || accept {
		t.Errorf("with nobody there: %d %v %v", n, terminal, accept)
	}
	st, leave := r.sit(wire.Attend{Terminal: true})
	blind, gone := r.sit(wire.Attend{AcceptNew: true}) // has no terminal: is not asked
	if n, terminal, accept := r.d.Sitting(bounded(t)); n != 2 || !terminal || !accept {
		t.Errorf("with two there: %d %v %v", n, terminal, accept)
	}
	_ = blind
	got := r.ask(bounded(t), "phrase")
	p := r.prompt(st)
	if p.Text != "phrase" || !p.Secret || p.Number == 0 {
		t.Errorf("asked %+v", p)
	}
	_ = st.WriteMsg(wire.MsgAnswer, wire.Answer{Number: p.Number + 7, Text: "of another question", OK: true})
	_ = st.WriteMsg(wire.MsgAnswer, wire.Answer{Number: p.Number, Text: "open", OK: true})
	if a := <-got; a.text != "open" || a.err != nil {
		t.Errorf("told %+v", a)
	}
	got = r.ask(bounded(t), "again")
	_ = st.WriteMsg(wire.MsgAnswer, wire.Answer{Number: r.prompt(st).Number})
	if a := <-got; !errs.Is(a.err, errs.Cancelled) {
		t.Errorf("not answered: %+v", a)
	}
	// A question that is not waited for any more is taken back.
	ctx, cancel := context.WithCancel(bounded(t))
	got = r.ask(ctx, "too late")
	p = r.prompt(st)
	cancel()
	if over := r.prompt(st); !over.Over || over.Number != p.Number {
		t.Errorf("taken back with %+v", over)
	}
	if a := <-got; a.err == nil {
		t.Error("a question that was taken back was answered")
	}
	// Who leaves in the middle has not answered.
	got = r.ask(bounded(t), "last")
	r.prompt(st)
	leave()
	if a := <-got; !errs.Is(a.err, errs.Unavailable) {
		t.Errorf("the terminal went: %+v", a)
	}
	gone()
	if _, terminal, accept := r.d.Sitting(bounded(t)); terminal || accept {
		t.Error("those who have left are still there")
	}
}

// TestDeskAwaited: the questions of a process that was just started wait for the command
// that started it.
func TestDeskAwaited(t *testing.T) {
	r := newRoom(t, NewDesk(true))
	there := make(chan bool, 1)
	go func() {
		_, terminal, _ := r.d.Sitting(bounded(t))
		there <- terminal
	}()
	select {
	case <-there:
		t.Error("nobody was waited for")
	default:
	}
	r.sit(wire.Attend{Terminal: true})
	if !<-there {
		t.Error("the one who came was not seen")
	}
}
