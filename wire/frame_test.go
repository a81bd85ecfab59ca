package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/iotest"

	"launcher/internal/errs"
)

func TestFrames(t *testing.T) {
	var buf bytes.Buffer
	bodies := [][]byte{nil, []byte("x"), bytes.Repeat([]byte("abc"), 100_000)}
	for i, b := range bodies {
		if err := WriteFrame(&buf, uint16(i), b); err != nil {
			t.Fatal(err)
		}
	}
	r := iotest.HalfReader(&buf)
	for i, b := range bodies {
		typ, got, err := ReadFrame(r)
		if err != nil || int(typ) != i || !bytes.Equal(got, b) {
			t.Errorf("frame %d: type %d, %d bytes, %v", i, typ, len(got), err)
		}
	}
	if _, _, err := ReadFrame(r); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
}

func TestFrameBounds(t *testing.T) {
	if err := WriteFrame(io.Discard, 1, make([]byte, MaxFrame)); !errs.Is(err, errs.Invalid) {
		t.Errorf("a frame too long was written: %v", err)
	}
	if err := WriteFrame(io.Discard, 1, make([]byte, MaxFrame-4)); err != nil {
		t.Errorf("the longest frame: %v", err)
	}
	for _, n := range []uint32{0, 3, MaxFrame + 1, 1<<32 - 1} {
		b := binary.LittleEndian.AppendUint32(nil, n)
		if _, _, err := ReadFrame(bytes.NewReader(append(b, 0, 0, 0, 0))); !errs.Is(err, errs.Corrupt) {
			t.Errorf("length %d: %v", n, err)
		}
	}
	whole := AppendFrame(nil, 7, []byte("hello"))
	for n := 1; n < len(whole); n++ {
		if _, _, err := ReadFrame(bytes.NewReader(whole[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// A length that is claimed and does not come costs nothing.
func TestClaimedLengthsCostNothing(t *testing.T) {
	h := binary.LittleEndian.AppendUint32(nil, MaxFrame)
	h = append(h, 0, 0, 0, 0, 1, 2, 3)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 50 {
		ReadFrame(bytes.NewReader(h))
	}
	runtime.ReadMemStats(&after)
	if per := (after.TotalAlloc - before.TotalAlloc) / 50; per > 256<<10 {
		t.Errorf("%d bytes for each claim of %d", per, MaxFrame)
	}
}

func TestLogFrames(t *testing.T) {
	f := LogFrame{Stream: 2, Length: 5, Index: 9, Attempt: 3, Rank: 1, Node: 4, Time: -1}
	b := append(f.Append(nil), "hello and more"...)
	got, data, n, err := ParseLogFrame(b)
	if err != nil || got != f || string(data) != "hello" || n != LogFrameHeader+5 {
		t.Errorf("%+v %q %d %v", got, data, n, err)
	}
	for cut := range LogFrameHeader + 5 {
		if _, _, n, err := ParseLogFrame(b[:cut]); n != 0 || err != nil {
			t.Errorf("cut at %d: %d, %v", cut, n, err)
		}
	}
	for name, damage := range map[string]func(b []byte){
		"magic":  func(b []byte) { b[0]++ },
		"stream": func(b []byte) { b[2] = 3 },
		"none":   func(b []byte) { b[2] = 0 },
		"length": func(b []byte) { binary.LittleEndian.PutUint32(b[4:], MaxLogData+1) },
	} {
		c := bytes.Clone(b)
		damage(c)
		if _, _, _, err := ParseLogFrame(c); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s damaged: %v", name, err)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(AppendFrame(nil, MsgAck, Marshal(Ack{1})))
	f.Add([]byte{0xff, 0xff, 0xff, 0, 1, 1, 0, 0, 5})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			at := len(b) - r.Len()
			typ, body, err := ReadFrame(r)
			if err != nil {
				return
			}
			again := AppendFrame(nil, typ, body)
			copy(again[6:8], b[at+6:]) // flags are for later versions
			if !bytes.Equal(again, b[at:len(b)-r.Len()]) {
				t.Errorf("%x was read as type %d, %x", b, typ, body)
			}
		}
	})
}

func FuzzUnmarshal(f *testing.F) {
	for _, v := range vectors {
		f.Add(Marshal(v.v))
	}
	f.Add(Marshal(Hello{Node: "a-0", Tries: []TryState{{}}, Labels: map[string]string{"a": "b"}}))
	f.Add(Marshal(Submit{Token: "t", Spec: JobSpec{Sweep: &SweepSpec{Parameters: []Parameter{{Values: []any{1, "x", nil}}}}}}))
	f.Add(Marshal(NodeConfig{Resources: &Resources{}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range []any{new(Hello), new(Welcome), new(Done), new(Assign), new(Report), new(Submit), new(LogBatch), new(NodeConfig), new(HeadConfig), new(Update), new(errs.Wire), new(any)} {
			if err := Unmarshal(b, v); err != nil && !errs.Is(err, errs.Corrupt) {
				t.Errorf("%T: kind %s, %v", v, errs.KindOf(err), err)
			}
		}
	})
}

func FuzzParseLogFrame(f *testing.F) {
	f.Add(append(LogFrame{Stream: 1, Length: 2}.Append(nil), "hi"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, data, n, err := ParseLogFrame(b)
		if err != nil || n == 0 {
			return
		}
		if n != LogFrameHeader+len(data) || n > len(b) || len(data) != int(l.Length) {
			t.Fatalf("%d bytes of %d, %d of data", n, len(b), len(data))
		}
		again := append(l.Append(nil), data...)
		again[3] = b[3] // reserved
		if !bytes.Equal(again, b[:n]) {
			t.Errorf("%x became %x", b[:n], again)
		}
	})
}

func FuzzParseTask(f *testing.F) {
	for _, s := range []string{"7", "7.12", "0", "7.", "-1", "99999999999", "7.1.2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		task, has, err := ParseTask(s)
		if err != nil {
			if !errs.Is(err, errs.Invalid) || len(errs.HintsOf(err)) == 0 {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		again, has2, err := ParseTask(task.String())
		if err != nil || !has2 || again != task || !has && task.Index != 0 {
			t.Errorf("%q became %v", s, task)
		}
	})
}
