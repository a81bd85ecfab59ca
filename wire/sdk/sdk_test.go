package sdk

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/vectors.txt anew; SDKs in other languages are tested with it")

var (
	task = wire.NewObjectID(7, 3, 1000, 0)
	ref  = wire.NewObjectID(7, 4, 5, wire.PutIndex)
	fn   = FuncID{1, 2, 3, 15: 16}
)

// put32 appends numbers.
func put32(b []byte, vs ...uint32) []byte {
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func bytesOf(id wire.ObjectID) []byte { return id[:] }

// frameOf makes a frame of pieces.
func frameOf(typ, flags uint16, pieces ...[]byte) []byte {
	b, at := Begin(nil, typ, flags)
	for _, p := range pieces {
		b = append(b, p...)
	}
	return Finish(b, at)
}

// shared is a value in a segment, as a client tells of it.
func shared() []byte {
	b := put32([]byte{Shared, 0, 0, 0}, 1)
	b = binary.LittleEndian.AppendUint64(b, 1<<20)
	b = append(b, ref[:]...)
	b = put32(b, 9, 0)
	return binary.LittleEndian.AppendUint64(b, 4096)
}

// vectors are the frames of testdata/vectors.txt.
func vectors() [][2]string {
	inline := AppendValue(nil, Inline, 1, []wire.ObjectID{ref}, 3, []byte{0x93, 1, 2})
	failure := Error{Code: "task", Message: "boom", Task: "f", Node: "n1", PID: 12, Hints: []string{"look"}}.Encode()
	submit := put32(append(append([]byte(nil), task[:]...), fn[:]...), 4, 2, SubmitNamed, 1, 1)
	submit = append(append(submit, ref[:]...), bytesOf(task.With(1))...)
	result := put32(bytesOf(task), 2, ResultOK)
	result = binary.LittleEndian.AppendUint64(result, 1_700_000_000_000_000_000)
	result = binary.LittleEndian.AppendUint64(result, 1_700_000_000_000_001_000)
	result = put32(result, 2)
	exec := put32(append(append([]byte(nil), task[:]...), fn[:]...), 2, 17, 1, SubmitNamed, 1, 1)
	return [][2]string{
		{"id of a task", hex.EncodeToString(task[:])},
		{"id of its second result", hex.EncodeToString(bytesOf(task.With(2)))},
		{"id of a put object", hex.EncodeToString(ref[:])},
		{"inline value", hex.EncodeToString(inline)},
		{"shared value, to the agent", hex.EncodeToString(shared())},
		{"shared value, to a client", hex.EncodeToString(AppendValue(nil, Shared, 2, nil, 1<<20, nil))},
		{"error value", hex.EncodeToString(AppendValue(nil, Failure, 1, nil, int64(len(failure)), failure))},
		{"end of a stream", hex.EncodeToString(AppendValue(nil, End, 0, nil, 0, nil))},
		{"Submit", hex.EncodeToString(frameOf(MsgSubmit, 0, submit, []byte{0x91, 5}))},
		{"Put", hex.EncodeToString(frameOf(MsgPut, 0, ref[:], inline))},
		{"Get", hex.EncodeToString(frameOf(MsgGet, 0, put32(nil, GetValue|GetBlocks, 0), ref[:], bytesOf(task.With(1))))},
		{"Awake", hex.EncodeToString(frameOf(MsgAwake, 0))},
		{"Release", hex.EncodeToString(frameOf(MsgRelease, 0, ref[:]))},
		{"Result", hex.EncodeToString(frameOf(MsgResult, 0, result, inline, shared()))},
		{"Yield", hex.EncodeToString(frameOf(MsgYield, 0, put32(bytesOf(task), 1, 3), inline))},
		{"Cancel", hex.EncodeToString(frameOf(MsgCancel, 0, put32(nil, CancelForce|CancelRecursive, 0), task[:]))},
		{"HandBack", hex.EncodeToString(frameOf(MsgHandBack, 0, put32(nil, 18)))},
		{"Object", hex.EncodeToString(frameOf(MsgObject, 0, bytesOf(task.With(1)), inline))},
		{"Object, readiness only", hex.EncodeToString(frameOf(MsgObject, ReadyOnly, bytesOf(task.With(1)), AppendValue(nil, Shared, 0, nil, 1<<20, nil)))},
		{"Exec", hex.EncodeToString(frameOf(MsgExec, 0, exec, []byte{0x80}, ref[:], inline, []byte{0x91, 5}))},
		{"CancelTask", hex.EncodeToString(frameOf(MsgCancelTask, 0, put32(bytesOf(task), 2)))},
		{"Consumed", hex.EncodeToString(frameOf(MsgConsumed, 0, put32(bytesOf(task), 12)))},
		{"Exit", hex.EncodeToString(frameOf(MsgExit, 0))},
	}
}

func TestVectors(t *testing.T) {
	const name = "testdata/vectors.txt"
	var b strings.Builder
	b.WriteString("# The frames of docs/tasks.md, one a line: name, then bytes in hexadecimal.\n")
	for _, v := range vectors() {
		b.WriteString(v[0] + ": " + v[1] + "\n")
	}
	if *rewrite {
		if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("%s differs from what is written now:\n%s", name, b.String())
	}
}

func TestValues(t *testing.T) {
	inline := AppendValue(nil, Inline, 2, []wire.ObjectID{ref, task}, 3, []byte("abc"))
	v, rest, err := CutValue(append(inline, "more"...))
	if err != nil || string(rest) != "more" {
		t.Fatalf("rest %q, %v", rest, err)
	}
	if v.Kind != Inline || v.Form != 2 || v.NumRefs() != 2 || v.Ref(0) != ref || v.Ref(1) != task || string(v.Bytes) != "abc" || v.Size != 3 {
		t.Errorf("got %+v", v)
	}
	v, rest, err = CutValue(shared())
	if err != nil || len(rest) != 0 || v.Segment != 9 || v.Offset != 4096 || v.Size != 1<<20 || v.Ref(0) != ref {
		t.Errorf("got %+v, %d bytes left, %v", v, len(rest), err)
	}
	for n := range len(inline) - 1 {
		if _, _, err := CutValue(inline[:n]); !errs.Is(err, errs.Corrupt) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	for _, bad := range [][]byte{
		append([]byte{9}, make([]byte, 15)...),
		put32([]byte{Inline, 0, 0, 0}, 1<<31, 0, 0),
		put32([]byte{Inline, 0, 0, 0}, 0, 4, 0),
		put32([]byte{Shared, 0, 0, 0}, 0, 4, 1<<31, 0, 0, 0, 0),
	} {
		if _, _, err := CutValue(bad); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

func TestSubmit(t *testing.T) {
	b := put32(append(append([]byte(nil), task[:]...), fn[:]...), 4, Stream, 1, 1, 2)
	b = append(append(append(b, ref[:]...), task[:]...), ref[:]...)
	s, err := ParseSubmit(append(b, "pay"...))
	want := Submit{Task: task, Func: fn, Shape: 4, Returns: Stream, Flags: 1, Deps: bytesOf(ref), Held: append(bytesOf(task), ref[:]...), Payload: []byte("pay")}
	if err != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v, %v", s, err)
	}
	for n := range len(b) - 1 {
		if _, err := ParseSubmit(b[:n]); err == nil {
			t.Errorf("cut at %d is taken", n)
		}
	}
	// Counts whose product is larger than a u32 do not wrap round.
	binary.LittleEndian.PutUint32(b[44:], 1<<28)
	if _, err := ParseSubmit(b); err == nil {
		t.Error("more deps than there are bytes are taken")
	}
}

func TestResult(t *testing.T) {
	b := put32(bytesOf(task), 3, ResultRetry)
	b = binary.LittleEndian.AppendUint64(b, 10)
	b = binary.LittleEndian.AppendUint64(b, 30)
	b = put32(b, 1)
	r, rest, err := ParseResult(append(b, 'v'))
	if err != nil || string(rest) != "v" || r != (Result{Task: task, Attempt: 3, Status: ResultRetry, Start: 10, End: 30, Values: 1}) {
		t.Errorf("got %+v, %q, %v", r, rest, err)
	}
	for n := range len(b) {
		if _, _, err := ParseResult(b[:n]); err == nil {
			t.Errorf("cut at %d is taken", n)
		}
	}
}

func TestFrames(t *testing.T) {
	b, at := Begin([]byte("before"), MsgHold, 0)
	b = Finish(append(b, ref[:]...), at)
	typ, body, err := wire.ReadFrame(bytes.NewReader(b[at:]))
	if err != nil || typ != MsgHold || !bytes.Equal(body, ref[:]) {
		t.Errorf("got %#x %x, %v", typ, body, err)
	}
	var got []wire.ObjectID
	if err := IDs(append(bytesOf(ref), task[:]...), func(id wire.ObjectID) { got = append(got, id) }); err != nil || !reflect.DeepEqual(got, []wire.ObjectID{ref, task}) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := IDs(make([]byte, 17), func(wire.ObjectID) {}); err == nil {
		t.Error("an id and a bit are taken")
	}
}

// What is read stays within what came, and is the same when it is written again.
func FuzzFrames(f *testing.F) {
	for _, v := range vectors() {
		b, _ := hex.DecodeString(v[1])
		f.Add(b)
		if len(b) > 8 {
			f.Add(b[8:])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, rest, err := CutValue(b); err == nil {
			if len(rest)+len(v.Bytes)+len(v.Refs) > len(b) {
				t.Fatalf("%d bytes give %+v", len(b), v)
			}
			if v.Kind == Inline || v.Kind == Failure {
				var refs []wire.ObjectID
				for i := range v.NumRefs() {
					refs = append(refs, v.Ref(i))
				}
				again := AppendValue(nil, v.Kind, v.Form, refs, v.Size, v.Bytes)
				if w, _, err := CutValue(again); err != nil || !reflect.DeepEqual(v, w) {
					t.Fatalf("%+v is read again as %+v, %v", v, w, err)
				}
			}
		}
		if s, err := ParseSubmit(b); err == nil && submitHead+len(s.Deps)+len(s.Held)+len(s.Payload) != len(b) {
			t.Fatalf("%d bytes give %+v", len(b), s)
		}
		_, _, _ = ParseResult(b)
	})
}

// TestIDsInParts: however many ids there are, no frame is too long, and none is lost.
func TestIDsInParts(t *testing.T) {
	for _, n := range []int{0, 16, idsMax, idsMax + 16, wire.MaxFrame + 32} {
		ids := bytes.Repeat([]byte{7}, n)
		b := AppendKeep(nil, ids)
		got, keeps := 0, 0
		for len(b) > 0 {
			size := int(u32(b))
			if size > wire.MaxFrame {
				t.Fatalf("a frame of %d bytes", size)
			}
			if binary.LittleEndian.Uint16(b[4:]) == MsgPeerKeep {
				keeps++
			} else if keeps > 0 {
				t.Error("a part comes after the end")
			}
			got += size - 4
			b = b[size+4:]
		}
		if got != n || keeps != 1 {
			t.Errorf("of %d bytes %d came, in frames with %d ends", n, got, keeps)
		}
	}
}
