package wire

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"launcher/internal/errs"
)

var rewrite = flag.Bool("rewrite", false, "write the vectors of docs/protocol.md anew")

const protocolDoc = "../docs/protocol.md"

// vector is a message and what it looks like on the wire.
type vector struct {
	name string
	v    any
}

var proc = Proc{Try{Task{7, 3}, 2}, 1}

// vectors are the values of docs/protocol.md, "Test vectors".
var vectors = []vector{
	{"Range", Range{0, 1000}},
	{"Try", proc.Try},
	{"Proc", proc},
	{"Resources", Resources{CPU: 2 * Unit, GPU: Unit / 2, Memory: 2 << 30, Custom: map[string]int64{"license": Unit}}},
	{"errs.Wire", errs.Wire{Kind: errs.NotFound, Msg: "no job 7", Hints: []string{"`launcher jobs` lists them"}}},
	{"Ack", Ack{Seq: 300}},
	{"Assign", Assign{Job: 7, Ranges: []Range{{0, 5}, {8, 9}}}},
	{"Done", Done{Seq: 2, Items: []Ended{{Proc: proc, Code: 137, Signal: 9, Reason: ReasonTimeLimit, Started: 1_700_000_000_000_000_000, Ended: 1_700_000_001_000_000_000, RSS: 4096, LogEnd: 70_000}}}},
	{"Report", Report{Seq: 1, Proc: proc, Step: -1, Metrics: map[string]float64{"acc": 0.5, "loss": 0.25}, Checkpoint: "/tmp/c", Time: 5}},
	{"Withdraw", Withdraw{Job: 7, Max: 100_000}},
	{"LogAck", LogAck{Job: 7, To: 1 << 33}},
	{"Cancel", Cancel{Job: 7, Task: new(uint32(12)), Grace: -1}},
	{"Submitted", Submitted{Job: 1}},
	{"InfoRequest", InfoRequest{}},
	{"Released", Release{Gang: proc.Try}},
}

// frames are vectors that are not messages.
func frames() [][2]string {
	log := LogFrame{Stream: 1, Length: 3, Index: 3, Attempt: 2, Rank: 1, Node: 0, Time: 1_700_000_000_000_000_000}
	return [][2]string{
		{"frame of Ack", hex.EncodeToString(AppendFrame(nil, MsgAck, Marshal(Ack{Seq: 300})))},
		{"frame without body", hex.EncodeToString(AppendFrame(nil, 0x1234, nil))},
		{"log frame", hex.EncodeToString(append(log.Append(nil), "hi\n"...))},
	}
}

// current is every vector as this version writes it.
func current() [][2]string {
	var out [][2]string
	for _, v := range vectors {
		out = append(out, [2]string{v.name, hex.EncodeToString(Marshal(v.v))})
	}
	return append(out, frames()...)
}

const (
	vectorsBegin = "<!-- vectors: wire -->\n```\n"
	vectorsEnd   = "```\n<!-- end -->"
)

// The document shows what this version writes; a message that gains a field changes its
// vector, and the old one goes to testdata/older.txt, which must be read for ever.
func TestVectors(t *testing.T) {
	doc, err := os.ReadFile(protocolDoc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(doc), vectorsBegin)
	listed, after, ok2 := strings.Cut(rest, vectorsEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no list of vectors", protocolDoc)
	}
	var want strings.Builder
	for _, v := range current() {
		fmt.Fprintf(&want, "%-20s %s\n", v[0], v[1])
	}
	if *rewrite {
		if err := os.WriteFile(protocolDoc, []byte(before+vectorsBegin+want.String()+vectorsEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if listed != want.String() {
		t.Errorf("%s lists\n%s\nbut this version writes\n%s\nIf a field was appended on purpose: move the old line to wire/testdata/older.txt, then go test ./wire -run TestVectors -rewrite",
			protocolDoc, listed, want.String())
	}
	for _, v := range vectors {
		got := reflect.New(reflect.TypeOf(v.v))
		if err := Unmarshal(Marshal(v.v), got.Interface()); err != nil || !reflect.DeepEqual(got.Elem().Interface(), v.v) {
			t.Errorf("%s became %+v, %v", v.name, got.Elem(), err)
		}
	}
}

// Lines of older.txt are what earlier builds wrote: name, the hex of it. They decode to
// the same values as today's.
func TestOlderVectors(t *testing.T) {
	f, err := os.Open("testdata/older.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		n++
		name, text, _ := strings.Cut(line, " ")
		b, err := hex.DecodeString(strings.TrimSpace(text))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		found := false
		for _, v := range vectors {
			if v.name != name {
				continue
			}
			found = true
			got := reflect.New(reflect.TypeOf(v.v))
			if err := Unmarshal(b, got.Interface()); err != nil || !reflect.DeepEqual(got.Elem().Interface(), v.v) {
				t.Errorf("an older %s is read as %+v, %v", name, got.Elem(), err)
			}
		}
		if !found {
			t.Errorf("%s is the name of no vector", name)
		}
	}
	if n == 0 {
		t.Error("the file has no vectors")
	}
}

// Sides of different minor versions understand each other: unknown fields are skipped,
// absent ones are zero.
func TestFieldsAreAppended(t *testing.T) {
	type older struct{ A, B int }
	type newer struct {
		A, B int
		C    string
		D    []older
	}
	var o older
	if err := Unmarshal(Marshal(newer{1, 2, "x", []older{{3, 4}}}), &o); err != nil || o != (older{1, 2}) {
		t.Errorf("an older side reads %+v, %v", o, err)
	}
	var n newer
	if err := Unmarshal(Marshal(older{1, 2}), &n); err != nil || n.A != 1 || n.B != 2 || n.C != "" || n.D != nil {
		t.Errorf("a newer side reads %+v, %v", n, err)
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	deep := bytes.Repeat([]byte{0x91}, 10_000)
	for name, b := range map[string][]byte{
		"nothing":    nil,
		"cut":        Marshal(Done{Items: []Ended{{Code: 1}}})[:5],
		"left over":  append(Marshal(Ack{1}), 0),
		"huge array": {0xdd, 0xff, 0xff, 0xff, 0xff},
		"huge bytes": {0xc6, 0xff, 0xff, 0xff, 0xff},
		"huge map":   {0xdf, 0xff, 0xff, 0xff, 0xff},
		"deep":       append(deep, 0xc0),
		"reserved":   {0xc1},
		"a string":   {0xa3, 'a', 'b', 'c'},
	} {
		for _, v := range []any{new(Hello), new(Done), new(Submit), new(Report), new(map[string]any), new(any)} {
			if name == "a string" && reflect.TypeOf(v) == reflect.TypeFor[*any]() || name == "deep" && len(b) < 100 {
				continue
			}
			if err := Unmarshal(b, v); !errs.Is(err, errs.Corrupt) {
				t.Errorf("%s as %T: %v", name, v, err)
			}
		}
	}
}
