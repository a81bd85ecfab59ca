package hostlist

import (
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	for s, want := range map[string]string{
		"gpu[01-04,7]": "gpu01 gpu02 gpu03 gpu04 gpu7", "a": "a", "r[1-2]n[8-9]": "r1n8 r1n9 r2n8 r2n9", "alice@10.0.0.9:2222": "alice@10.0.0.9:2222",
		"u@gpu[1-2].lab.org:22": "u@gpu1.lab.org:22 u@gpu2.lab.org:22", "[::1]:22": "[::1]:22", "n[098-101]": "n098 n099 n100 n101",
		"a[": "", "a[]": "", "a[3-1]": "", "a[x]": "", "a b": "", "": "", "a:99999": "", "-o": "", "a[1-9999999]": "", "a]": "", "a;b": "", "$(x)": "",
	} {
		got, err := Expand(s)
		if (err != nil) != (want == "") || strings.Join(got, " ") != want {
			t.Errorf("%q: got %v, %v; want %q", s, got, err, want)
		}
	}
}

func TestMachine(t *testing.T) {
	for _, same := range [][2]string{{"h", "h:22"}, {"h", "alice@H:022"}, {"[::1]", "[::1]:22"}, {"h:23", "bob@h:23"}} {
		if Machine(same[0], 22) != Machine(same[1], 22) {
			t.Errorf("%q is not the machine %q", same[0], same[1])
		}
	}
	if Machine("h", 22) == Machine("h:23", 22) || Machine("h:22", 2222) == Machine("h", 2222) || Machine("h:2222", 2222) != Machine("h", 2222) {
		t.Error("ports are not told apart")
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"gpu[01-04,7]", "u@h:22", "[::1]:22", "a[1-2][3-4]", "a[", "a[1-65537]", "[::1]x[1-2]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out, err := Expand(s)
		if err == nil && len(out) == 0 || len(out) > maxHosts {
			t.Errorf("%q: %d hosts, %v", s, len(out), err)
		}
		for _, h := range out {
			if !Is(h) {
				t.Errorf("%q gives %q", s, h)
			}
		}
	})
}
