package session

import (
	"context"
	"io"

	"launcher/internal/errs"
)

// Relay joins two streams until both directions have ended or ctx ends: what comes on one
// goes to the other, ends and causes included. Both are closed when it returns.
func Relay(ctx context.Context, a, b *Stream) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		cause := errs.Wrap(errs.Unavailable, context.Cause(ctx), "the relay ended")
		a.CloseWith(cause)
		b.CloseWith(cause)
	})
	one := make(chan error, 1)
	go func() { one <- relayHalf(ctx, a, b) }()
	err := relayHalf(ctx, b, a)
	if e := <-one; err == nil {
		err = e
	}
	if !stop() {
		<-closed
	}
	a.Close()
	b.Close()
	return err
}

// relayHalf carries one direction. It touches only that direction of both streams: the
// other may still have an answer under way.
func relayHalf(ctx context.Context, from, to *Stream) error {
	buf := make([]byte, 32<<10)
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() { // a reader that went away ends the writer on the other side
		defer close(watched)
		select {
		case <-to.Unwanted():
			from.CloseRead(to.reasonUnwanted())
		case <-done:
		}
	}()
	defer func() { close(done); <-watched }()
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				from.CloseRead(werr)
				return werr
			}
		}
		if err == io.EOF {
			return to.CloseWrite()
		}
		if ctx.Err() != nil {
			return err // both are being closed with the cause
		}
		if err != nil {
			to.end(endSending, err)
			return err
		}
	}
}

func (st *Stream) reasonUnwanted() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.why
}
