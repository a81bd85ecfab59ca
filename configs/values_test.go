package configs

import (
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"launcher/wire"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"20GiB": 20 << 30, "1.5 GiB": 3 << 29, "500MB": 500e6, "4k": 4096, "2T": 2 << 40, "0": 0, "7B": 7, "1kib": 1024,
		"5": -1, "": -1, "GiB": -1, "1XB": -1, "1Gi": -1, "-1GB": -1, "9999999PiB": -1, "1..2GB": -1, "1iB": -1} {
		got, err := ParseSize(s)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: got %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{"10m": 10 * time.Minute, "1h30m": 90 * time.Minute, "2d": 48 * time.Hour, "1d12h": 36 * time.Hour, "90s": 90 * time.Second,
		"600": -1, "": -1, "-5m": -1, "10 m": -1, "d": -1, "1d-3h": -1, "1d1d": -1} {
		got, err := ParseDuration(s)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: got %s, %v; want %s", s, got, err, want)
		}
	}
}

func TestCheckMemory(t *testing.T) {
	for s, ok := range map[string]bool{"30%": true, "0.5%": true, "100%": true, "20GiB": true, "0%": false, "101%": false, "20": false, "%": false, "1KiB": false} {
		if err := CheckMemory(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestParseRanges(t *testing.T) {
	r := func(v ...uint32) (out []wire.Range) {
		for i := 0; i < len(v); i += 2 {
			out = append(out, wire.Range{From: v[i], To: v[i+1]})
		}
		return
	}
	for s, want := range map[string][]wire.Range{"0-99": r(0, 100), "5": r(5, 6), "4-5,1-3, 9": r(1, 6, 9, 10), "0-9,20-29": r(0, 10, 20, 30),
		"": nil, "a": nil, "3-1": nil, "1-3,3": nil, "-4": nil, "0-4294967295": nil, "0-99999999999": nil, "1,,2": nil} {
		got, err := ParseRanges(s)
		if (err != nil) != (want == nil) || !reflect.DeepEqual(got, want) && err == nil {
			t.Errorf("%q: got %v, %v; want %v", s, got, err, want)
		}
	}
}

func TestParsePorts(t *testing.T) {
	for s, want := range map[string][2]int{"20000-20100": {20000, 20100}, "7": {7, 7}, "": {0, 0}, "0-5": {-1}, "9-5": {-1}, "1-70000": {-1}, "a-b": {-1}, "1-2-3": {-1}} {
		lo, hi, err := ParsePorts(s)
		if (err != nil) != (want[0] < 0) || err == nil && [2]int{lo, hi} != want {
			t.Errorf("%q: got %d-%d, %v", s, lo, hi, err)
		}
	}
}

func TestAmount(t *testing.T) {
	for v, want := range map[float64]int64{1: 10000, 0.5: 5000, 0: 0, 0.0001: 1, 0.3: 3000, 64: 640000, -1: -1, 0.00001: -1, 1e12: -1} {
		if got, err := Amount(v); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%v: got %d, %v", v, got, err)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	for got, want := range map[string]string{"nmae": "did you mean name?", "Name": "did you mean name?", "max_job": "did you mean max_jobs?", "zzz": "allowed are max_jobs, name"} {
		if s := didYouMean(got, []string{"name", "max_jobs"}); s != want {
			t.Errorf("%s: %s", got, s)
		}
	}
}

// TestLines checks that each value knows its line, in every shape of TOML.
func TestLines(t *testing.T) {
	text := `# comment = 1
a = 1
"b c" = [ # [x]
  1, "]", # 2

  [ 3,
    4 ],
]
d.e = { f = "}", g = [1] }
h = """
x = 1
[no]
\""""
i = '''
'''''
j = 2026-01-02T03:04:05Z

[k]
l = 'a#b' # c
  [k.m]
  n = true
[[o]]
p = 1
[[o.q]]
r = 1
[[o.q]]
r = 2
[[o]]
[o.s]
"t\u0041" = -1.5e3
`
	root, faults := parseTOML("f", []byte(text))
	if faults != nil {
		t.Fatal(faults)
	}
	var got []string
	var walk func(path string, n *node)
	walk = func(path string, n *node) {
		got = append(got, fmt.Sprintf("%s:%d", path, n.line))
		switch v := n.val.(type) {
		case *object:
			for _, k := range v.keys {
				walk(path+"/"+k, v.m[k])
			}
		case []*node:
			for i, e := range v {
				walk(fmt.Sprintf("%s#%d", path, i), e)
			}
		}
	}
	walk("", root)
	want := ":1 /a:2 /b c:3 /b c#0:4 /b c#1:4 /b c#2:6 /b c#2#0:6 /b c#2#1:7 /d:9 /d/e:9 /d/e/f:9 /d/e/g:9 /d/e/g#0:9 /h:10 /i:14 /j:16 " +
		"/k:18 /k/l:19 /k/m:20 /k/m/n:21 /o:22 /o#0:22 /o#0/p:23 /o#0/q:24 /o#0/q#0:24 /o#0/q#0/r:25 /o#0/q#1:26 /o#0/q#1/r:27 /o#1:28 /o#1/s:29 /o#1/s/tA:30"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("\n got %s\nwant %s", s, want)
	}
}

func FuzzCluster(f *testing.F) {
	f.Add("version = 1\nname = \"x\"\n[head]\nwhere = \"here\"\n[[pool]]\nname = \"p\"\nbackend = \"local\"\nnodes = 2\n")
	f.Add("[[pool]]\nname = 'p'\nbackend = \"ssh\"\nhosts = [\"a[1-3]\", \"b\"]\nresources = { cpu = 1 }\n")
	f.Add("a.b.c = [[{x=1}],\n2]\n[a.d]\n[[a.e]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCluster("f.toml", "/d/f.toml", []byte(text))
		checkParse(t, c == nil, err, text)
	})
}

func FuzzJob(f *testing.F) {
	f.Add("version = 1\ncommand = [\"a\"]\n[array]\nrange = \"0-9\"\n")
	f.Add("version = 1\nkind = \"sweep\"\n[sweep]\nprogram = \"a\"\nmethod = \"random\"\nrun_cap = 2\n[sweep.parameters]\nlr = { min = 0.1, max = 2 }\n")
	f.Add("version = 1\ncommand = [\"a\"]\n[train]\nworkers = \"2:3\"\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		j, err := ParseJob("f.toml", dir+"/f.toml", []byte(text))
		checkParse(t, j == nil, err, text)
	})
}

func FuzzWandb(f *testing.F) {
	f.Add("program: a\nmethod: grid\nparameters:\n  a: &x\n    values: [1, 2]\n  b: *x\n")
	f.Add("<<: {a: 1}\nb: |\n  x\n? c\n: d\n")
	f.Fuzz(func(t *testing.T, text string) {
		j, err := ParseWandb("f.yaml", "/d/f.yaml", []byte(text))
		checkParse(t, j == nil, err, text)
	})
}

// checkParse holds what is true of every input: a value or faults, each with a line of
// the text.
func checkParse(t *testing.T, none bool, err error, text string) {
	if none != (err != nil) {
		t.Fatalf("value and error: %v", err)
	}
	lines := strings.Count(text, "\n") + 2
	for _, x := range faultsOf(t, err) {
		if x.Line < 1 || x.Line > lines || x.Msg == "" {
			t.Fatalf("fault %+v in a text of %d lines", x, lines)
		}
	}
}

func TestParseLimits(t *testing.T) {
	got, err := ParseLimits([]string{"cpu=8, gpu=0.5", "memory=2GiB", "license=1"})
	want := wire.Limits{"cpu": 8 * wire.Unit, "gpu": wire.Unit / 2, "memory": 2 << 30, "license": wire.Unit}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := ParseLimits(nil); err != nil || got != nil {
		t.Errorf("of nothing %v, %v", got, err)
	}
	for _, bad := range []string{"cpu", "cpu=", "=3", "cpu=-1", "memory=x", "a b=1"} {
		if got, err := ParseLimits([]string{bad}); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}
