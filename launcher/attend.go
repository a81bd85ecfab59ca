package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// attend has what must be asked while hosts are reached asked here, until the connection c
// ends or ctx does: at our terminal, if there is one. It returns when the sitting has begun.
// wait returns when the terminal is as it was.
func (a *app) attend(ctx context.Context, c *client, acceptNew bool) (wait func(), err error) {
	st, err := c.s.Open(ctx, wire.StreamRequest)
	if err != nil {
		return nil, away(err)
	}
	tty := a.openTerminal()
	_ = st.SetDeadline(time.Now().Add(callBound))
	err = st.WriteMsg(wire.MsgAttend, wire.Attend{Terminal: tty != nil, AcceptNew: acceptNew})
	if err == nil {
		var begun wire.Prompt
		err = answer(st, &begun)
	}
	if err != nil {
		_ = st.Close()
		tty.Close()
		return nil, away(err)
	}
	_ = st.SetDeadline(time.Time{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer tty.Close()
		defer st.Close()
		defer context.AfterFunc(ctx, func() { _ = st.SetReadDeadline(time.Unix(1, 0)) })()
		tty.serve(ctx, st, a.screen.done)
	})
	return wg.Wait, nil
}

// terminal is the person at this process's terminal, whatever its standard streams are.
type terminal struct {
	f *os.File
}

// openTerminal gives the terminal, nil where there is none or nobody would see a question.
func (a *app) openTerminal() *terminal {
	if !a.tty {
		return nil
	}
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	return &terminal{f}
}

func (t *terminal) Close() {
	if t != nil {
		_ = t.f.Close()
	}
}

// serve answers prompts as they come until the stream ends.
func (t *terminal) serve(ctx context.Context, st *session.Stream, clear func()) {
	prompts := make(chan wire.Prompt)
	go func() {
		defer close(prompts)
		for {
			var p wire.Prompt
			if answer(st, &p) != nil {
				return
			}
			prompts <- p
		}
	}()
	p, ok := <-prompts
	for ok {
		if p.Over || t == nil {
			p, ok = <-prompts
			continue
		}
		clear()
		typed := make(chan wire.Answer, 1)
		asked, cancel := context.WithCancel(ctx)
		go func() {
			text, err := t.ask(asked, p.Text, p.Secret)
			typed <- wire.Answer{Number: p.Number, Text: text, OK: err == nil}
		}()
		var next wire.Prompt
		select {
		case a := <-typed:
			cancel()
			if st.WriteMsg(wire.MsgAnswer, a) != nil {
				ok = false
			} else {
				next, ok = <-prompts
			}
		case next, ok = <-prompts: // nobody waits for this answer any more
			cancel()
			<-typed
		}
		p = next
	}
	for range prompts {
	}
}

// ask shows a prompt and reads a line, which is not shown when it is secret.
func (t *terminal) ask(ctx context.Context, prompt string, secret bool) (string, error) {
	if secret {
		show, err := hide(t.f)
		if err != nil {
			return "", errs.Wrap(errs.Unavailable, err, "the terminal shows what is typed")
		}
		defer show()
	}
	_ = t.f.SetReadDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { _ = t.f.SetReadDeadline(time.Unix(1, 0)) })()
	if _, err := io.WriteString(t.f, prompt); err != nil {
		return "", err
	}
	// Byte by byte: what is typed ahead belongs to the next question.
	var line strings.Builder
	b := make([]byte, 1)
	for {
		n, err := t.f.Read(b)
		switch {
		case n == 1 && b[0] == '\n':
			if secret {
				_, _ = io.WriteString(t.f, "\n")
			}
			return strings.TrimSuffix(line.String(), "\r"), nil
		case n == 1:
			line.WriteByte(b[0])
		case errors.Is(err, os.ErrDeadlineExceeded):
			_, _ = io.WriteString(t.f, "\n")
			return "", context.Cause(ctx)
		case err != nil:
			return "", err
		}
	}
}
