// Command load connects to targets until its standard input ends, and prints what came of it: a line of JSON four times a
// second. See nodes.Load. With serve, it is the server of echo targets.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	connectEvery = 10 * time.Millisecond
	requestEvery = 100 * time.Millisecond
	timeout      = 5 * time.Second
	keptErrors   = 5
)

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "serve":
		log.Fatal(serve(":7"))
	case len(os.Args) > 2 && os.Args[1] == "run":
		run(os.Args[2:])
	default:
		fmt.Fprintln(os.Stderr, "usage: load serve | load run TARGET...")
		os.Exit(64)
	}
}

// serve sends back what comes, by TCP.
func serve(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

// count is nodes.Count.
type count struct {
	OK, Failed int
	Errors     []string
}

type counts struct {
	mu sync.Mutex
	of map[string]*count
}

func (c *counts) add(target string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.of[target].OK++
		return
	}
	c.of[target].Failed++
	if len(c.of[target].Errors) < keptErrors {
		c.of[target].Errors = append(c.of[target].Errors, time.Now().Format("15:04:05.000")+" "+err.Error())
	}
}

func (c *counts) print() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(c.of)
}

func run(targets []string) {
	c := &counts{of: make(map[string]*count)}
	for _, target := range targets {
		c.of[target] = &count{}
	}
	for _, target := range targets {
		kind, addr, _ := strings.Cut(target, "=")
		switch kind {
		case "connect":
			go every(connectEvery, func() { c.add(target, connect(addr)) })
		case "hold":
			go hold(func(err error) { c.add(target, err) }, func() (net.Conn, error) {
				return tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", addr, &tls.Config{InsecureSkipVerify: true})
			}, request)
		case "echo":
			go hold(func(err error) { c.add(target, err) }, func() (net.Conn, error) {
				return net.DialTimeout("tcp", addr, timeout)
			}, echo)
		case "api":
			go api(addr, func(err error) { c.add(target, err) })
		default:
			log.Fatalf("unknown target %q", target)
		}
	}
	go every(250*time.Millisecond, c.print)
	_, _ = io.Copy(io.Discard, os.Stdin)
	c.print()
}

func every(interval time.Duration, fn func()) {
	for range time.Tick(interval) {
		fn()
	}
}

func connect(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, timeout)
	if err != nil {
		return err
	}
	return conn.Close()
}

// hold keeps one connection and asks for an answer now and then. A loss counts once.
func hold(add func(error), dial func() (net.Conn, error), ask func(net.Conn, *bufio.Reader) error) {
	for {
		conn, err := dial()
		if err != nil {
			add(err)
			time.Sleep(requestEvery)
			continue
		}
		for r := bufio.NewReader(conn); err == nil; time.Sleep(requestEvery) {
			_ = conn.SetDeadline(time.Now().Add(timeout))
			err = ask(conn, r)
			add(err)
		}
		conn.Close()
	}
}

// request is one of HTTP to an API server, of which everybody may ask this.
func request(conn net.Conn, r *bufio.Reader) error {
	if _, err := io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: kubernetes\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body) // not ready is an answer, too: it is the connection that is judged
	return err
}

func echo(conn net.Conn, r *bufio.Reader) error {
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := r.ReadByte()
	return err
}

// api asks by client-go, as the administrator of the node.
func api(server string, add func(error)) {
	config, err := clientcmd.BuildConfigFromFlags(server, os.Getenv("KUBECONFIG"))
	if err != nil {
		log.Fatal(err)
	}
	config.Timeout = timeout
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		log.Fatal(err)
	}
	every(requestEvery, func() {
		_, err := client.CoreV1().Services("default").Get(context.Background(), "kubernetes", metav1.GetOptions{})
		add(err)
	})
}
