package wire

import (
	"testing"

	"launcher/internal/errs"
)

func TestParseTask(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Task
		has  bool
		ok   bool
	}{
		{"7", Task{Job: 7}, false, true}, {"7.0", Task{7, 0}, true, true}, {"7.12", Task{7, 12}, true, true},
		{"0", Task{}, false, false}, {"", Task{}, false, false}, {"7.", Task{}, false, false}, {".1", Task{}, false, false},
		{"x", Task{}, false, false}, {"7.1.1", Task{}, false, false}, {"-7", Task{}, false, false}, {"4294967296", Task{}, false, false},
	} {
		got, has, err := ParseTask(c.in)
		if (err == nil) != c.ok || c.ok && (got != c.want || has != c.has) || err != nil && !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v %v %v", c.in, got, has, err)
		}
	}
	if s := (Proc{Try{Task{7, 0}, 1}, 2}).String(); s != "7.0#1/2" {
		t.Errorf("a process is written %q", s)
	}
}

func TestResources(t *testing.T) {
	have := Resources{CPU: 4 * Unit, GPU: Unit, Memory: 10, Custom: map[string]int64{"lic": 2 * Unit}}
	for _, c := range []struct {
		need  Resources
		times int
	}{
		{Resources{}, 9}, {Resources{CPU: Unit}, 4}, {Resources{GPU: Unit / 2}, 2}, {Resources{CPU: 3 * Unit}, 1},
		{Resources{Memory: 11}, 0}, {Resources{Custom: map[string]int64{"lic": Unit}}, 2}, {Resources{Custom: map[string]int64{"other": 1}}, 0},
		{Resources{CPU: Unit, Custom: map[string]int64{"lic": Unit}}, 2},
	} {
		n := have.Times(c.need, 9)
		if n != c.times || have.Fits(c.need) != (n > 0) {
			t.Errorf("%s fits %d times (%v), wanted %d", c.need, n, have.Fits(c.need), c.times)
		}
		if rest := have.Add(c.need, -int64(n)); rest.Negative() {
			t.Errorf("%d times %s leave %s", n, c.need, rest)
		}
		if rest := have.Add(c.need, -int64(n+1)); n < 9 && !rest.Negative() {
			t.Errorf("%d times %s leave %s", n+1, c.need, rest)
		}
	}
	if have.Custom["lic"] != 2*Unit {
		t.Error("Add changed its operand")
	}
	if over := (Resources{CPU: -Unit}); over.Times(Resources{CPU: Unit}, 5) != 0 {
		t.Error("something fits into less than nothing")
	}
	if s := have.String(); s != "cpu=4 gpu=1 memory=10B lic=2" {
		t.Errorf("%q", s)
	}
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1KiB", 1536: "1.5KiB", 2 << 30: "2GiB", 5 << 50: "5PiB"} {
		if s := Bytes(n); s != want {
			t.Errorf("%d is written %q, wanted %q", n, s, want)
		}
	}
}

func TestStates(t *testing.T) {
	for s := StateUnknown; s <= StateLost; s++ {
		if s.Terminal() != (s >= StateDone) || s.String() == "" {
			t.Errorf("state %d: %q, terminal %v", s, s, s.Terminal())
		}
	}
	if State(200).String() == "" {
		t.Error("a state of a later version has no name")
	}
}
