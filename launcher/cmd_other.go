package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

func (a *app) cmdVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "the version of this binary",
		Args:  argCount(0, 0),
		RunE: func(*cobra.Command, []string) error {
			proto := fmt.Sprintf("%d.%d", wire.ProtocolMajor, wire.ProtocolMinor)
			if a.json {
				a.printJSON(doc{"launcher": session.BuildVersion(), "protocol": proto, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
				return nil
			}
			fmt.Fprintf(a.out, "launcher %s, protocol %s, %s %s/%s\n", session.BuildVersion(), proto, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

func (a *app) cmdCompletion() *cobra.Command {
	return &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "print a completion script for a shell",
		Long:      "Print a completion script. For bash: source <(launcher completion bash)",
		ValidArgs: []string{"bash", "zsh", "fish"},
		Args:      argCount(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return c.Root().GenBashCompletionV2(a.out, true)
			case "zsh":
				return c.Root().GenZshCompletion(a.out)
			case "fish":
				return c.Root().GenFishCompletion(a.out, true)
			}
			return errs.New(errs.Invalid, "there is no completion for %q", args[0]).Hint("bash, zsh and fish have one")
		},
	}
}

// laterCommands are those of the design that this version does not have: they say so.
func (a *app) laterCommands() []*cobra.Command {
	var out []*cobra.Command
	for _, name := range []string{"map", "top", "dashboard"} {
		out = append(out, &cobra.Command{
			Use: name, Hidden: true, DisableFlagParsing: true,
			RunE: func(c *cobra.Command, _ []string) error {
				a.guessJSON()
				e := errs.New(errs.Unbuilt, "launcher %s: not in this version", name)
				switch name {
				case "map":
					return e.Hint("`launcher run --each-line FILE -- CMD {}` runs a command on each line of a file")
				case "top", "dashboard":
					return e.Hint("`launcher status`, `nodes` and `jobs` show what is going on")
				}
				return e
			},
		})
	}
	return out
}

const jsonHelp = `With --json every command prints JSON on standard output: one document, or for commands
that follow a job (run, train, sweep, attach, logs, bench) one document per line. Every
document has "version": 1; fields are only ever added. Times are RFC 3339 in UTC, or null.
Numbers that JSON lacks are the strings "NaN", "Infinity", "-Infinity".

Failure, of any command:
  {"version":1, "error":{"kind","message","hints":[...]}, "exit":{"code","side"}}
  a bad file also has "faults":[{"file","line","key","message"}] in its error
  kind: invalid not-found exists unavailable timeout cancelled permission exhausted lost
        version corrupt unbuilt internal fenced unknown
  side: "command" when the code is the user's program's, "launcher" when it is ours

status    {"cluster":{"name","spec","state","version","started","head":{"pid","host","epoch"},
           "total":RES,"free":RES}, "pools":[POOL], "nodes":[NODE], "jobs":{STATE:count}}
up        the same, and "started": whether this command started it
down      {"cluster":NAME, "state":"down", "record":DIR}
up --dry-run {"cluster":NAME, "pools":[{"name","backend","nodes","sends"}]}
jobs      {"jobs":[JOB]}                      tasks JOB   {"job":N, "tasks":[TASK]}
tasks     {"tasks":[TASK], "sdk":[SDKTASK], "counts":[{"name","state","count","why"}], UNREACHED}
objects   {"nodes":[{"node","count","resident","spilled","inline","segments","limit","pinned"
           (bytes but count),"objects":[OBJECT]}], UNREACHED}
actors    {"actors":[{"id","job","class","namespace","name","state","node","worker","lives",
           "detached","why"}], UNREACHED}     metrics Prometheus text
timeline  a Chrome trace; with -o FILE {"file","events","dropped", UNREACHED}
nodes     {"nodes":[NODE]}                    pools   {"pools":[POOL]}
why       {"subject","lines":[...]}           version {"launcher","protocol","go","os","arch"}
wait      {"jobs":[JOB], "exit":{...}}        cancel  {"cancelled":[{"subject","stopped"}]}
submit, --detach   {"job":N}                  drain   {"node","state"}
sweep show {"job":JOB,"metric","goal","units","trials":[TRIAL]}
doctor    {"findings":[{"level","what","fix"}]}   forget {"forgotten":[NAME]}
bench     {"event":"row","bench","what","value","unit","limit","limit_is","ratio","target",
           "less_is_better","met","steal"} ... then {"event":"end"}
report, should-leave   {"leave":bool,"reason","deadline"}
param     {"params":{...}} or {"key","value"}     checkpoint {"path","step"}
run, train, sweep, attach, exec, logs -- one line each:
  {"event":"submitted","job":N}
  {"event":"output","task","attempt","rank","node","stream":"stdout|stderr","time","offset","data"}
     bytes that are not UTF-8 come as "base64" instead of "data"; "note" in place of data
     says that output was dropped or is damaged there
  {"event":"trials", ... as sweep show}
  {"event":"ended","job":JOB,"exit":{"code","side"}}

JOB   {"id","name","kind","state","tasks","waiting","running","done","failed","cancelled",
       "lost_attempts","restarts","exit_code","cause","command","dir","submitted","started",
       "ended","step","metrics","best":TRIAL}
TASK  {"task","attempt","state","node","exit_code","reason","cause","started","ended","line",
       "params","ranks":[{"rank","node","state","exit_code"}]}
SDKTASK {"id","name","job","state","attempt","node","worker" (pid),"parent","waits_for":[ID],
       "why","submitted","started","ended"}
       state: waiting queued running blocked done failed cancelled
OBJECT {"id","job","state","size","copy","nodes","made_by","age" (seconds),
       "holders":[{"what","who","count"}]}
       state: pending inline resident spilled elsewhere lost error
UNREACHED "unreached":[{"node","message","hints"}]: nodes that did not answer
TRIAL {"index","state","params","metric","best","step","pruned","exit_code","started","ended"}
NODE  {"id","pool","host","addr","state","total":RES,"free":RES,"gpus","running","queued",
       "load1","memory_free","agent_restarts","since","seen","deadline","clock_offset_ns",
       "pid","python","route","why"}
POOL  {"name","backend","min","max","up","pending","failed","wanted","why"}
RES   {"cpu","gpu","memory" (bytes),"custom"}
STATE waiting running stopping done failed cancelled lost`

const runHelp = `A program that launcher starts finds these in its environment:

  LAUNCHER               path of the launcher binary
  LAUNCHER_CLUSTER       name of the cluster
  LAUNCHER_JOB_ID        number of the job
  LAUNCHER_TASK_ID       JOB.INDEX
  LAUNCHER_TASK_INDEX    the index; LAUNCHER_LINE is the line of an --each-line array
  LAUNCHER_ATTEMPT       1, 2, ... : a run of the same task after a loss or a retry
  LAUNCHER_PARAMS        path of a JSON file with a trial's parameters
  LAUNCHER_CHECKPOINT_IN / _OUT   checkpoint to go on from; directory to write the next to
  LAUNCHER_DEADLINE      unix seconds by which it should have left, if there is such a time;
                         when that changes should-leave --json says so
  LAUNCHER_SOCKET        the node's agent: launcher report, param, checkpoint, should-leave
  CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS; ranks also have all of torchrun's variables

Exit 0 is done. Exit 75 is "I left as asked, continue me", believed of an attempt that was
told to leave or has committed a checkpoint. Anything else has failed. SIGTERM and a grace
period come before SIGKILL.`

// helpTopics are pages of `launcher help TOPIC`.
func (a *app) helpTopics() []*cobra.Command {
	return []*cobra.Command{
		{Use: "json", Short: "the shapes that --json prints", Long: jsonHelp},
		{Use: "environment", Short: "what a program in a run finds", Long: runHelp},
	}
}

// executable is the path of this binary, for the processes it starts.
func executable() (string, error) {
	p, err := os.Executable()
	if err != nil {
		return "", errs.Wrap(errs.Internal, err, "cannot find the launcher binary")
	}
	return p, nil
}
