package session

import (
	"encoding/binary"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"launcher/internal/errs"
)

// Who breaks the multiplexer's rules loses the session, and is told which rule.
func TestViolations(t *testing.T) {
	frame := func(typ, flags uint8, id uint32, body []byte) []byte {
		return append(appendHead(nil, typ, flags, id, len(body)), body...)
	}
	open := frame(muxOpen, 0, 1, []byte{1, 0})
	flood := slices.Clone(open)
	for range window/maxChunk + 1 {
		flood = append(flood, frame(muxData, 0, 1, make([]byte, maxChunk))...)
	}
	credit := func(n uint32) []byte { return frame(muxCredit, 0, 1, binary.LittleEndian.AppendUint32(nil, n)) }
	cat := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	for name, c := range map[string]struct {
		send []byte
		text string
	}{
		"more than the window": {flood, "than there is room for"},
		"too much credit":      {cat(open, credit(1)), "more credit"},
		"huge credit":          {cat(open, credit(1<<32-1)), "more credit"},
		"small credit frame":   {cat(open, frame(muxCredit, 0, 1, []byte{1})), "a credit of 1 bytes"},
		"never opened":         {frame(muxData, 0, 3, []byte("x")), "which nobody opened"},
		"never opened by us":   {frame(muxData, 0, 2, []byte("x")), "which nobody opened"},
		"opened twice":         {cat(open, open), "opened after"},
		"our number":           {frame(muxOpen, 0, 2, []byte{1, 0}), "malformed opening"},
		"no kind":              {frame(muxOpen, 0, 1, nil), "malformed opening"},
		"long data":            {appendHead(nil, muxData, 0, 1, maxChunk+1), "allowed are 65536"},
		"long control":         {appendHead(nil, muxBye, 0, 0, maxControl+1), "allowed are 8192"},
		"bad cause":            {cat(open, frame(muxEnd, 3, 1, []byte{0xc1})), "malformed message"},
		"bad ping":             {frame(muxPing, 0, 0, []byte{1}), "a ping of 1 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			cfg := Config{}.withDefaults()
			s := newSession(t.Context(), near, Peer{Name: "x"}, cfg, false)
			defer s.Close()
			go io.Copy(io.Discard, far)
			defer far.Close()
			far.SetWriteDeadline(time.Now().Add(soon))
			far.Write(c.send)
			select {
			case <-s.Done():
			case <-time.After(soon):
				t.Fatal("the session goes on")
			}
			(&lab{T: t}).wantErr(s.Err(), errs.Corrupt, c.text)
		})
	}
	// What a later minor version may add is not a violation.
	near, far := net.Pipe()
	s := newSession(t.Context(), near, Peer{}, Config{}.withDefaults(), false)
	defer s.Close()
	defer far.Close()
	far.SetDeadline(time.Now().Add(soon))
	far.Write(cat(frame(200, 0xff, 0, []byte("new")), open, frame(muxEnd, 3, 1, nil), frame(muxData, 0, 1, []byte("late")), frame(muxPing, 0, 0, []byte("12345678"))))
	pong := make([]byte, muxHeader+8)
	if _, err := io.ReadFull(far, pong); err != nil || pong[4] != muxPong || string(pong[muxHeader:]) != "12345678" {
		t.Errorf("answer %x, %v, session %v", pong, err, s.Err())
	}
}
