package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"launcher/internal/testkit"
)

// netTest makes a network of pretend hosts whose python has numpy, for tests that take long.
func netTest(t *testing.T) *testkit.Net {
	t.Helper()
	if os.Getenv("LAUNCHER_TEST_SSH") != "all" {
		t.Skip("SKIP: LAUNCHER_TEST_SSH=all runs what takes long")
	}
	return testkit.NewNet(t, "numpy")
}

// netSpec is a spec of pretend hosts.
func netSpec(n *testkit.Net, head, pools string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version = 1\nname = \"boxes\"\n[head]\nwhere = %q\n", head)
	for name, hosts := range pairs(pools) {
		fmt.Fprintf(&b, "[[pool]]\nname = %q\nbackend = \"ssh\"\nhosts = [%s]\nssh_config = %q\nresources = { cpu = 2 }\nmin = %d\n",
			name, tomlList(hosts), n.Config, len(strings.Fields(hosts)))
	}
	return b.String()
}

// pairs reads "name: host host; name: host".
func pairs(s string) func(func(string, string) bool) {
	return func(yield func(string, string) bool) {
		for _, p := range strings.Split(s, ";") {
			name, hosts, _ := strings.Cut(strings.TrimSpace(p), ":")
			if !yield(name, hosts) {
				return
			}
		}
	}
}

func tomlList(words string) string {
	var out []string
	for _, w := range strings.Fields(words) {
		out = append(out, fmt.Sprintf("%q", w))
	}
	return strings.Join(out, ", ")
}

// digits puts the example into the working directory.
func digits(t *testing.T, h *testkit.Home) {
	t.Helper()
	for _, f := range []string{"train.py", "mlp.py", "data.py", "digits.csv.gz", "sweep.toml"} {
		b, err := os.ReadFile(filepath.Join("..", "examples", "digits", f))
		if err != nil {
			t.Fatal(err)
		}
		h.Write(f, string(b))
	}
}

// onlyBinary fails where a host holds more than the binary that was copied there, when the
// end of the connection has come there.
func onlyBinary(t *testing.T, hosts ...*testkit.Host) {
	t.Helper()
	for _, h := range hosts {
		testkit.Eventually(t, testkit.Bound, func() string {
			if left := h.Left(); len(left) != 1 || !regexp.MustCompile(`^/home/[^/]*/\.launcher/bin/[0-9a-f]*/launcher$`).MatchString(left[0]) {
				return fmt.Sprintf("left on %s after down: %q", h.Name, slices.DeleteFunc(left, func(p string) bool { return strings.Contains(p, "/cache/") && len(left) > 20 }))
			}
			return ""
		})
	}
}

// TestRootNet: a host that shares no files with this machine gets the directory of a job,
// and checkpoints come and go; after down it holds the binary.
func TestRootNet(t *testing.T) {
	n := testkit.NewNet(t)
	a, b := n.Host("h1", testkit.HostOptions{}), n.Host("h2", testkit.HostOptions{})
	h := n.Laptop
	h.Write("boxes.toml", netSpec(n, "here", "box: h1 h2"))
	h.Write("in/file", "of the submitter\n")
	h.Write("ckpt.sh", `set -e
in=$("$LAUNCHER" checkpoint || true)
if [ -n "$in" ]; then
	echo "rank $RANK goes on from $(cat "$in"/rank-$RANK/state) and $(cat "$LAUNCHER_CHECKPOINT_IN"/state)"
	exit 0
fi
mkdir -p ck-$RANK
echo "step 5 of $RANK" >ck-$RANK/state
"$LAUNCHER" report step=5 --checkpoint ck-$RANK
[ $RANK = 0 ] || exit 3
exec sleep 600
`)
	h.OK("up", "boxes.toml")
	if out := h.OK("run", "--", "sh", "-c", "hostname; cat in/file; pwd; touch new"); !strings.HasPrefix(out, "h") || !strings.Contains(out, "\nof the submitter\n/home/") {
		t.Errorf("what runs on a host: %q", out)
	}
	if _, err := os.Stat(filepath.Join(h.Work, "new")); err == nil {
		t.Error("the host shares the working directory")
	}
	if out := h.OK("exec", "box-1", "--", "sh", "-c", "hostname; pwd"); out != "h2\n/home/"+h.User.Name+"\n" {
		t.Errorf("exec: %q", out)
	}
	out := h.OK("train", "-n", "2", "--per-node", "1", "--max-restarts", "50", "sh", "ckpt.sh") // rank 1 may fail before rank 0 has saved
	for rank := range 2 {
		if want := fmt.Sprintf("[%d] rank %[1]d goes on from step 5 of %[1]d and step 5 of %[1]d\n", rank); !strings.Contains(out, want) {
			t.Errorf("%q is missing: %s", want, out)
		}
	}
	h.OK("down", "boxes")
	onlyBinary(t, a, b)
}

const optimum = "objective 0.26186455  accuracy 0.978854  |W| 15.547594  steps 8  ranks "

// TestRootNetDemo: the main job on four hosts where nothing is installed but numpy: one is
// behind another, and one can be reached by ssh and reaches nothing.
func TestRootNetDemo(t *testing.T) {
	n := netTest(t)
	jump := n.Host("h1", testkit.HostOptions{})
	hosts := []*testkit.Host{jump, n.Host("h2", testkit.HostOptions{}), n.Host("h3", testkit.HostOptions{Behind: jump}),
		n.Host("h4", testkit.HostOptions{Closed: true, Server: testkit.ServerOptions{Lines: []string{"AllowTcpForwarding no"}}})}
	h := n.Laptop
	digits(t, h)
	h.Write("boxes.toml", netSpec(n, "here", "box: h1 h2 h3 h4"))
	if out := h.OK("up", "boxes.toml"); !strings.Contains(out, "cluster boxes is up: 4 nodes") {
		t.Errorf("up: %q", out)
	}
	out := h.OK("run", "--array", "0-99", "--", "sh", "-c", "hostname; sleep 0.05") // sleep: so that all hosts get some
	for _, x := range hosts {
		if strings.Count(out, x.Name+"\n") == 0 {
			t.Errorf("no task of the array ran on %s", x.Name)
		}
	}
	if len(strings.Fields(out)) != 100 {
		t.Errorf("an array of 100: %q", out)
	}
	if out := h.OK("train", "-n", "8", "train.py"); !strings.Contains(out, optimum+"8\n") {
		t.Errorf("training on four hosts: %s", out)
	}
	if out := h.OK("sweep", "sweep.toml"); !strings.Contains(out, "best: trial ") {
		t.Errorf("sweep: %s", out)
	}
	h.OK("down", "boxes")
	onlyBinary(t, hosts...)
}
