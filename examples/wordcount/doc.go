// Package wordcount holds the tests of the word count; its programs are count.py and
// merge.py, and run.sh puts them to work on a cluster.
package wordcount
