// Command launcher turns the machines that a person may use into one computer: it
// brings clusters up and down, runs programs on them, and shows how they are doing.
//
// One file per command (cmd_VERB.go); what they share is in app.go (flags, exit codes),
// target.go (which cluster), client.go (talking to the head), follow.go (watching a job
// to its end), table.go and json.go (what is printed). The hidden commands of
// cmd_hidden.go are the processes of a cluster.
package main

import (
	"os"

	"launcher"
	sshdial "launcher/backends/ssh/dial"
)

func main() {
	sshdial.Askpass() // does not return where a system ssh started us to ask something
	// A worker of the Go benchmark: a worker is its driver's program, started without arguments.
	if len(os.Args) == 1 && os.Getenv("LAUNCHER_WORKER") != "" {
		launcher.Main(nil)
	}
	os.Exit(newApp(os.Stdin, os.Stdout, os.Stderr).main(os.Args[1:]))
}
