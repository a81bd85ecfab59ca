package launcher

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// answer is what the agent says to a Call.
type answer struct {
	body []byte
	err  error
}

// handle acts on a frame of the agent; mu must be held. An error ends the conversation.
func (c *client) handle(f *frames, typ, flags uint16, body []byte) error {
	switch typ {
	case sdk.MsgObject:
		return c.object(flags, body)
	case sdk.MsgExec:
		return c.worker.exec(c, body)
	case sdk.MsgGiveFunc:
		return c.worker.function(body)
	case sdk.MsgCancelTask:
		return c.worker.cancel(body)
	case sdk.MsgConsumed:
		return c.worker.consumed(body)
	case sdk.MsgExit:
		return c.worker.exit()
	case sdk.MsgAnswer:
		return c.answered(body)
	case sdk.MsgGranted, sdk.MsgSegment, sdk.MsgDropSegment:
		return c.store.handle(c, f, typ, body)
	case sdk.MsgLog:
		return c.log(body)
	case wire.MsgError:
		return wireFailure(body)
	}
	return errs.New(errs.Corrupt, "the agent sent frame %#04x", typ)
}

func short(what string) error { return errs.New(errs.Corrupt, "a %s frame that is too short", what) }

// cutValueHead reads a value's head off b: docs/tasks.md, section 2.
func cutValueHead(b []byte) (kind, form uint8, size uint64, rest []byte, ok bool) {
	if len(b) < 16 {
		return 0, 0, 0, nil, false
	}
	refs := uint64(binary.LittleEndian.Uint32(b[4:]))
	if uint64(len(b)-16) < 16*refs {
		return 0, 0, 0, nil, false
	}
	// The ids are inside the value too, where decoding finds them.
	return b[0], b[1], binary.LittleEndian.Uint64(b[8:]), b[16+16*refs:], true
}

// object takes in that an object is there.
func (c *client) object(flags uint16, body []byte) error {
	if len(body) < 16 {
		return short("Object")
	}
	o := c.objects[objectID(body)]
	kind, form, size, data, ok := cutValueHead(body[16:])
	if !ok || (kind == sdk.Inline || kind == sdk.Failure) && flags&sdk.ReadyOnly == 0 && uint64(len(data)) != size {
		return short("Object")
	}
	if o == nil {
		return nil // released meanwhile
	}
	c.proves(o.at)
	if o.state.Load() > stateReady {
		return nil
	}
	switch {
	case kind == sdk.Failure && len(data) > 0:
		if err := decodeFailure(data); !errors.Is(err, ErrFull) || !errors.Is(o.err, ErrFull) { // else some may be reading it
			o.err = err
		}
		o.settle(stateFailed)
	case kind == sdk.End:
		o.value = value{end: true}
		o.settle(stateInline)
	case kind == sdk.Shared:
		o.settle(stateShared)
	case flags&sdk.ReadyOnly != 0:
		if o.settle(stateReady); flags&sdk.Later != 0 && o.asked == askedValue {
			// Too much waited to be read here; by now it is.
			c.askFor(o, askedValue, sdk.GetValue, false)
			c.out.close()
			if c.nudge() {
				go c.flush()
			}
		}
	case kind == sdk.Inline:
		o.value = value{form: form, data: copyOf(data, false)}
		o.settle(stateInline)
	default:
		return errs.New(errs.Corrupt, "an object of kind %d", kind)
	}
	return nil
}

// ask asks the agent something and waits for the answer.
func (c *client) ask(ctx context.Context, out any, verb string, args ...any) error {
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.gone != nil {
		defer c.mu.Unlock()
		return c.gone
	}
	n := c.sendCall(verb, args...)
	c.calls[n] = ch
	c.mu.Unlock()
	c.flush()
	select {
	case a := <-ch:
		if a.err != nil {
			return a.err
		}
		return readGeneral(c, a.body, out)
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.calls, n)
		c.mu.Unlock()
		return ctx.Err()
	}
}

// sendCall writes a Call; mu must be held.
func (c *client) sendCall(verb string, args ...any) uint32 {
	c.call++
	c.out.begin(sdk.MsgCall)
	c.out.u32(c.call)
	c.out.buf = append(c.out.buf, wire.Marshal(append([]any{verb}, args...))...)
	c.out.close()
	c.ends[c.call] = c.out.end()
	return c.call
}

// prove asks for a sign that the agent has handled what was written so far; mu must be
// held.
func (c *client) prove() {
	c.sendCall("sync")
	c.out.asked = c.out.end()
}

func (c *client) answered(body []byte) error {
	if len(body) < 8 {
		return short("Answer")
	}
	n := binary.LittleEndian.Uint32(body)
	if end, ok := c.ends[n]; ok {
		delete(c.ends, n)
		c.proves(end)
	}
	ch := c.calls[n]
	if ch == nil {
		return nil
	}
	delete(c.calls, n)
	if binary.LittleEndian.Uint32(body[4:]) != 0 {
		ch <- answer{err: wireFailure(body[8:])}
	} else {
		ch <- answer{body: copyOf(body[8:], false)}
	}
	return nil
}

// log keeps what a task of this driver printed, with the name of who did; it is shown
// once mu is free. mu must be held.
func (c *client) log(body []byte) error {
	if len(body) < 4 || len(body)-4 < int(binary.LittleEndian.Uint16(body[2:])) {
		return short("Log")
	}
	n := int(binary.LittleEndian.Uint16(body[2:]))
	who, text := body[4:4+n], body[4+n:]
	to := &c.logs
	if body[0] == 2 {
		to = &c.errors
	}
	for line := range bytes.Lines(text) {
		*to = append(append(append(append(*to, '('), who...), ") "...), line...)
		if line[len(line)-1] != '\n' {
			*to = append(*to, '\n')
		}
	}
	return nil
}
