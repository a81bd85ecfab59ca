package wire

import "testing"

func TestLimits(t *testing.T) {
	l := Limits{"cpu": 8 * Unit, "memory": 4 << 30, "license": 2 * Unit}
	need := Resources{CPU: Unit, Memory: 1 << 30}
	if n := l.Times(Resources{}, need, 100); n != 4 {
		t.Errorf("%d fit, by memory 4", n)
	}
	if n := l.Times(Resources{CPU: 7 * Unit}, need, 100); n != 1 {
		t.Errorf("%d fit beside 7 of 8 cores", n)
	}
	if n := l.Times(Resources{CPU: 9 * Unit}, need, 100); n != 0 {
		t.Errorf("%d fit beside more than all", n)
	}
	if n := l.Times(Resources{}, Resources{GPU: Unit}, 100); n != 100 {
		t.Errorf("%d GPUs, which are not bound", n)
	}
	for _, x := range []struct {
		use  Resources
		want string
	}{
		{Resources{CPU: 7 * Unit}, ""},
		{Resources{CPU: 8 * Unit}, "8 cpu"},
		{Resources{Memory: 4 << 30}, "4GiB memory"},
	} {
		if got := l.Reached(x.use, need); got != x.want {
			t.Errorf("with %s: %q, want %q", x.use, got, x.want)
		}
	}
	if got := l.String(); got != "8 cpu, 2 license, 4GiB memory" {
		t.Error(got)
	}
}
