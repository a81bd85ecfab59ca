package broker

import (
	"context"
	"io"
	"os"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/bundle"
	"launcher/wire/session"
)

// outputsPause is how long the other side may take between two pieces of outputs.
const outputsPause = time.Minute

// bringBound is how long it may take to put what has come where it belongs: while it does
// nothing is heard, and when it is given up it begins anew, from the first file on.
const bringBound = 30 * time.Minute

// outputsStream bounds each piece.
type outputsStream struct{ *session.Stream }

func (s outputsStream) Read(b []byte) (int, error) {
	_ = s.SetReadDeadline(time.Now().Add(outputsPause))
	return s.Stream.Read(b)
}

func (s outputsStream) Write(b []byte) (int, error) {
	_ = s.SetWriteDeadline(time.Now().Add(outputsPause))
	return s.Stream.Write(b)
}

// Bring brings what is below a directory here into one on the broker's machine, which is the
// one that jobs were submitted from.
func (r *Remote) Bring(ctx context.Context, into wire.Into, from string) (came bundle.Came, err error) {
	st, err := r.open(ctx)
	if err != nil {
		return came, errs.Wrap(errs.Unavailable, err, "outputs come to %s when its machine is back", into.Dir)
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { _ = st.CloseWith(context.Cause(ctx)) })()
	if err := st.WriteMsg(MsgBrokerBring, into); err != nil {
		return came, broken(ctx, err)
	}
	z, err := bundle.Compress(outputsStream{st})
	if err == nil {
		err = bundle.PackAll(ctx, z, from)
	}
	if err == nil {
		err = z.Close()
	}
	_ = st.CloseWrite()
	// A broker that does not take it says why, and the rest has nowhere to go.
	_ = st.SetReadDeadline(time.Now().Add(bringBound))
	typ, body, rerr := st.ReadMsg()
	switch {
	case rerr == nil:
		if aerr := readAnswer(typ, body, &came); aerr != nil || err == nil {
			return came, aerr
		}
	case err == nil:
		err = rerr
	}
	return came, broken(ctx, err)
}

// takeOutputs takes them, all or nothing, before any of them goes where it belongs.
func takeOutputs(ctx context.Context, st *session.Stream, body []byte, tmpdir string) (came bundle.Came, err error) {
	var into wire.Into
	if err := wire.Unmarshal(body, &into); err != nil {
		return came, err
	}
	tmp, err := os.MkdirTemp(tmpdir, ".outputs-")
	if err != nil {
		return came, errs.Wrap(errs.Exhausted, err, "outputs on their way to %s", into.Dir)
	}
	defer os.RemoveAll(tmp)
	z, err := bundle.Decompress(outputsStream{st})
	if err != nil {
		return came, err
	}
	defer z.Close()
	if err := bundle.Unpack(z, tmp); err != nil {
		return came, err
	}
	if _, err := io.Copy(io.Discard, z); err != nil {
		return came, errs.Wrap(errs.Unavailable, err, "outputs on their way to %s", into.Dir)
	}
	return bundle.Bring(ctx, tmp, into)
}
