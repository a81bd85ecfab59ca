package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"launcher/internal/testkit"
	"launcher/internal/testkit/slurmtest"
)

// imageScript makes a directory that is an image: a shell, some commands and a Python,
// from what this machine has.
const imageScript = `set -e
mkdir -p "$1"/usr/bin "$1"/usr/lib "$1"/etc "$1"/proc "$1"/sys "$1"/dev "$1"/run "$1"/var/tmp
ln -s usr/bin "$1"/bin; ln -s usr/lib "$1"/lib; ln -s usr/lib64 "$1"/lib64; mkdir "$1"/usr/lib64
echo image >"$1"/etc/which
py=$(readlink -f "$(command -v /usr/bin/python3)")
lib=$("$py" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir -p "$1$lib"
(cd "$lib" && tar cf - --exclude=test --exclude=__pycache__ --exclude='config-*' --exclude=ensurepip --exclude=idlelib --exclude=lib2to3 .) | tar xf - -C "$1$lib"
put() { mkdir -p "$1$(dirname "$2")"; cp -L "$2" "$1$2"; }
for c in sh env cat id sleep ls grep; do cp -L "$(command -v $c)" "$1/usr/bin/$c"; done
cp "$py" "$1/usr/bin/python3"
for f in "$1"/usr/bin/* "$lib"/lib-dynload/*.so; do
	ldd "$f" 2>/dev/null | grep -o '/[^ ]*' | sort -u
done | sort -u | while read -r l; do put "$1" "$l"; done
`

// podman makes the environment of one that works here as this plain user, and an image;
// or skips the test.
func podman(t *testing.T) (env []string, image string) {
	t.Helper()
	if _, err := exec.LookPath("podman"); err != nil {
		t.Skip("SKIP: no podman (make setup as root on Debian)")
	}
	dir, err := os.MkdirTemp("/tmp", "lp")
	if err != nil {
		t.Fatal(err)
	}
	image = filepath.Join(dir, "image")
	if out, err := exec.Command("sh", "-c", imageScript, "sh", image).CombinedOutput(); err != nil {
		t.Fatalf("making an image: %v: %s", err, out)
	}
	conf := filepath.Join(dir, "containers.conf")
	text := ""
	if _, err := os.Stat("/sys/fs/cgroup/unified"); err == nil {
		text = "[engine]\nruntime = \"runc\"\n" // crun does not know what to do with both kinds of cgroups
	}
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	env = []string{"HOME=" + dir, "CONTAINERS_CONF=" + conf, "XDG_RUNTIME_DIR=" + run}
	try := exec.Command("podman", "run", "--rm", "--network=host", "--userns=keep-id", "--rootfs", image, "cat", "/etc/which")
	try.Env = append(os.Environ(), env...)
	out, err := try.CombinedOutput()
	t.Cleanup(func() {
		end := exec.Command("sh", "-c", "podman unshare rm -rf "+dir+"/.local; podman system migrate; rm -rf "+dir)
		end.Env = append(os.Environ(), env...)
		_ = end.Run()
	})
	if err != nil {
		t.Skipf("SKIP: podman does not run as this user: %v: %s", err, out)
	}
	return env, image
}

// In a container commands, tasks in Python and their objects are those of the image, with
// the directories of the machine; after down there is no container.
func TestPodman(t *testing.T) {
	slurmtest.Whole(t)
	env, image := podman(t)
	h := testkit.New(t)
	h.Env = append(h.Env, env...)
	h.Write("box.toml", `version = 1
name = "box"
[[pool]]
name = "boxes"
backend = "local"
container = "podman://`+image+`"
setup = ["export LINE=$(cat /etc/which)"]
`)
	h.Write("prog.py", `import launcher as ray
ray.init()

@ray.remote
def inside(x):
    return open("/etc/which").read().strip(), len(x)

print(ray.get(inside.remote(ray.put(b"x" * (8 << 20)))))
`)
	h.OK("up", "box.toml")
	if out := h.OK("run", "--", "sh", "-c", "cat /etc/which; echo $LINE; id -u; ls prog.py; ls /usr/bin | grep -c bash || true"); !strings.HasPrefix(out, "image\nimage\n") || !strings.HasSuffix(out, "prog.py\n0\n") {
		t.Errorf("a command: %q", out)
	}
	if out := h.OK("run", "--", "python3", "prog.py"); out != "('image', 8388608)\n" {
		t.Errorf("a program: %q", out)
	}
	if r := h.Run("run", "--", "sh", "-c", "exit 7"); r.Code != 7 {
		t.Errorf("an exit code: %s", r)
	}
	h.OK("down", "box")
	ps := exec.Command("podman", "ps", "-a", "--format", "{{.Names}}")
	ps.Env = append(os.Environ(), env...)
	if out, err := ps.CombinedOutput(); err != nil || strings.Contains(string(out), "launcher-") {
		t.Errorf("containers are left: %v %s", err, out)
	}

	h.Write("box.toml", strings.Replace(h.Read("box.toml"), image, image+"-nosuch", 1))
	up := h.Start("up", "box.toml")
	testkit.Eventually(t, testkit.Bound, func() string {
		if r := h.Run("why", "boxes"); !strings.Contains(r.Out, "the container cannot be started: ") || !strings.Contains(r.Out, image+"-nosuch: no such file") {
			return r.String()
		}
		return ""
	})
	up.Signal(os.Interrupt)
	up.Wait()
	h.OK("down", "box")
}

// In a container under Slurm too; a guard that is killed leaves nothing, and no node is
// drained.
func TestSlurmPodman(t *testing.T) {
	slurmtest.Whole(t)
	env, image := podman(t)
	h, c := slurmHome(t, slurmtest.Options{Nodes: 2, Lines: []string{"KillWait=30"}}) // which is what sites have: a runtime takes its time
	h.Env = append(h.Env, env...)
	h.Write("queue.toml", slurmSpec("min = 2\nmax = 2\ncontainer = \"podman://"+image+"\""))
	h.OK("up", "queue.toml")
	if out := h.OK("run", "--nodes", "2", "--", "sh", "-c", "cat /etc/which; echo rank $RANK"); strings.Count(out, "image\n") != 2 || !strings.Contains(out, "rank 1") {
		t.Errorf("a gang: %q", out)
	}
	h.OK("down", "queue")
	nothingOfOurs(t, c)
	h.OK("up", "queue.toml")
	jobs := strings.Fields(c.OK(t, "squeue", "-h", "-o", "%A"))
	c.OK(t, "scancel", jobs...)
	testkit.Eventually(t, testkit.Bound, func() string {
		for _, p := range h.Processes() {
			if cmd := strings.Join(p.Args, " "); strings.Contains(cmd, "conmon") || strings.Contains(cmd, "podman") {
				return "left by scancel: " + cmd
			}
		}
		return ""
	})
	h.OK("down", "queue")
	if bad := c.OK(t, "sinfo", "-h", "-R"); strings.TrimSpace(bad) != "" {
		t.Errorf("nodes were drained: %q", bad)
	}
}
