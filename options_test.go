package launcher

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestOptions(t *testing.T) {
	opts := []Option{CPU(0.5), GPU(2), Memory(1 << 30), Resource("license", 1), Resource("disk", 0.25), Retries(-1), Name("n"), Priority(-3),
		Time(time.Minute), Env(map[string]string{"A": "1", "B": "2"}), WorkingDir("/tmp"), Backpressure(4), Program("/bin/x")}
	want := map[string]any{"cpu": int64(5000), "gpu": int64(20000), "memory": int64(1 << 30), "resources": map[string]any{"license": int64(10000), "disk": int64(2500)},
		"max_retries": int64(-1), "name": "n", "priority": int64(-3), "time": int64(time.Minute), "env": map[string]any{"A": "1", "B": "2"},
		"working_dir": "/tmp", "backpressure": int64(4), "program": "/bin/x"}
	for _, c := range []struct {
		with Option
		want any
	}{
		{Spread(), []any{"spread"}}, {OnNode("n1"), []any{"node", "n1", false}}, {PreferNode("n1"), []any{"node", "n1", true}},
		{func(o *options) { Label("gpu", "a", "b")(o); NotLabel("slow")(o); PreferLabel("fabric", "ib")(o) },
			[]any{"labels", map[string]any{"gpu": []any{"in", []any{"a", "b"}}, "slow": []any{"!exists", []any{}}}, map[string]any{"fabric": []any{"in", []any{"ib"}}}}},
	} {
		var o options
		for _, opt := range append(opts, c.with) {
			opt(&o)
		}
		want["strategy"] = c.want
		var got map[string]any
		if err := readGeneral(nil, o.encode(), &got); err != nil || o.err != nil {
			t.Fatal(err, o.err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("\n got %v\nwant %v", got, want)
		}
		if string(o.encode()) != string(o.encode()) {
			t.Error("equal options differ")
		}
	}
	var none options
	if b := none.encode(); string(b) != "\x80" {
		t.Errorf("no options are %x", b)
	}
	for _, bad := range []Option{CPU(-1), GPU(1e300), Memory(-1), Retries(-2), Resource("x", -1), Backpressure(-1)} {
		var o options
		bad(&o)
		if o.err == nil {
			t.Error("taken")
		}
	}
}

func TestWithDoesNotChangeTheFunction(t *testing.T) {
	name := fmt.Sprint("with", time.Now().UnixNano())
	f := Func(func(context.Context, int) (int, error) { return 0, nil }, Name(name), Resource("a", 1))
	g := f.With(Resource("b", 1), CPU(3))
	if f.f.defaults.cpu != nil || len(f.f.defaults.resources) != 1 || len(g.f.defaults.resources) != 2 || *g.f.defaults.cpu != 3 || g.f.id != f.f.id {
		t.Error(f.f.defaults, g.f.defaults)
	}
	defer func() {
		if recover() == nil {
			t.Error("the same name twice")
		}
	}()
	Func(func(context.Context, int) (int, error) { return 0, nil }, Name(name))
}

func TestActorOptions(t *testing.T) {
	type state struct{}
	name := fmt.Sprint("actor", time.Now().UnixNano())
	c := Actor0(func(context.Context) (*state, error) { return nil, nil }, Name(name), ConcurrencyGroup("io", 2))
	d := c.With(ConcurrencyGroup("cpu", 1), MaxConcurrency(3), MaxRestarts(-1), ActorName("x"), Namespace("s"), Detached(), Unordered())
	if a := c.f.defaults.actor; len(a.groups) != 1 || a.name != "" || a.concurrency != 0 {
		t.Errorf("With changed the class: %+v", a)
	}
	o := d.f.defaults
	o.check(d.f)
	var got map[string]any
	if err := readGeneral(nil, o.encode(), &got); err != nil || o.err != nil {
		t.Fatal(err, o.err)
	}
	want := map[string]any{"name": name, "max_retries": int64(-1), "actor": map[string]any{"concurrency": int64(3), "groups": map[string]any{"io": int64(2), "cpu": int64(1)},
		"namespace": "s", "name": "x", "detached": true, "unordered": true, "meta": []byte(nil)}}
	got["actor"].(map[string]any)["meta"] = []byte(nil)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
	m := Method0(func(*state, context.Context) (int, error) { return 0, nil }, Name("M"))
	f := Func0(func(context.Context) (int, error) { return 0, nil }, Name(name+" f"))
	for i, bad := range []struct {
		of   *function
		with Option
	}{{c.f, MaxRestarts(-2)}, {c.f, MaxConcurrency(0)}, {c.f, ConcurrencyGroup("", 1)}, {c.f, Retries(1)}, {c.f, InGroup("io")}, {c.f, GetIfExists()},
		{m.f, MaxRestarts(1)}, {f.f, InGroup("io")}, {f.f, Detached()}} {
		o := bad.of.defaults
		bad.with(&o)
		if o.check(bad.of); o.err == nil {
			t.Errorf("option %d is taken", i)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("the same method twice")
		}
	}()
	Method0(func(*state, context.Context) (int, error) { return 0, nil }, Name("M"))
}

// TestStringOfAList: what has values in it is no string, whatever they are.
func TestStringOfAList(t *testing.T) {
	long := make([]any, 20)
	for _, v := range []any{[]any{1, 2}, []any{}, long, map[string]any{"a": 1}} {
		b, _, err := appendMsgpack(nil, v)
		if err != nil {
			t.Fatal(err)
		}
		var s string
		if err := decodeValue(nil, formMsgpack, b, &s, false); err == nil || !strings.Contains(err.Error(), ", not a string") {
			t.Errorf("%v is the string %q, %v", v, s, err)
		}
	}
}
