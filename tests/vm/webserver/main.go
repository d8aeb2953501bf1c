// Command webserver is what images come through in the lab besides a registry:
//
//	webserver site DIRECTORY CERTIFICATE KEY    serves files by TLS, and plain.aci by a redirect to plain text
//	webserver files DIRECTORY RATE              serves files on port 80, those below /slow/ at RATE bytes a second
//	webserver signatures ADDRESS REGISTRY CERTIFICATE KEY    is a registry that has GPG signatures, too, before one that has none
//	webserver proxy USER:PASSWORD RATE          is a proxy on port 3128 that sends RATE bytes a second, 0 for all that it can
package main

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"
)

func main() {
	log.SetFlags(0)
	switch args := os.Args[2:]; os.Args[1] {
	case "site":
		http.Handle("/", http.FileServer(http.Dir(args[0])))
		http.Handle("/plain.aci", http.RedirectHandler("http://app.test/tiny-1.0-linux-amd64.aci", http.StatusFound))
		log.Fatal(http.ListenAndServeTLS("127.0.0.1:443", args[1], args[2], nil))
	case "files":
		rate, err := strconv.Atoi(args[1])
		if err != nil {
			log.Fatal(err)
		}
		files := http.FileServer(http.Dir(args[0]))
		http.Handle("/", files)
		http.HandleFunc("/slow/", func(w http.ResponseWriter, r *http.Request) {
			http.StripPrefix("/slow", files).ServeHTTP(slow{w, rate}, r)
		})
		log.Fatal(http.ListenAndServe("127.0.0.1:80", nil))
	case "signatures":
		registry, err := url.Parse(args[1])
		if err != nil {
			log.Fatal(err)
		}
		http.Handle("/", &httputil.ReverseProxy{
			Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(registry) },
			ModifyResponse: func(r *http.Response) error { r.Header.Set("X-Registry-Supports-Signatures", "1"); return nil },
		})
		http.Handle("/extensions/v2/", &signatures{of: map[string][]json.RawMessage{}})
		log.Fatal(http.ListenAndServeTLS(args[0], args[2], args[3], nil))
	case "proxy":
		rate, err := strconv.ParseInt(args[1], 10, 64)
		if err != nil {
			log.Fatal(err)
		}
		p := proxy{"Basic " + base64.StdEncoding.EncodeToString([]byte(args[0])), rate}
		log.Fatal(http.ListenAndServe("127.0.0.1:3128", p))
	}
}

// signatures keeps what is put below /extensions/v2/NAME/signatures/DIGEST (docs/signature-protocols.md of containers/image).
type signatures struct {
	mu sync.Mutex
	of map[string][]json.RawMessage // by path
}

func (s *signatures) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.Method {
	case http.MethodGet:
		json.NewEncoder(w).Encode(map[string]any{"signatures": s.of[r.URL.Path]})
	case http.MethodPut:
		var signature json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&signature); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.of[r.URL.Path] = append(s.of[r.URL.Path], signature)
		w.WriteHeader(http.StatusCreated)
	default:
		http.Error(w, "GET or PUT", http.StatusMethodNotAllowed)
	}
}

// slow sends rate bytes a second.
type slow struct {
	http.ResponseWriter
	rate int
}

func (s slow) Write(data []byte) (n int, err error) {
	for n < len(data) && err == nil {
		var sent int
		sent, err = s.ResponseWriter.Write(data[n:min(n+s.rate/pieces, len(data))])
		n += sent
		http.NewResponseController(s.ResponseWriter).Flush()
		time.Sleep(time.Second / pieces)
	}
	return n, err
}

// pieces is how many a second what is slow comes in.
const pieces = 20

// proxy knows hosts that nobody else knows: all of them are this one.
type proxy struct {
	authorization string
	rate          int64 // bytes a second
}

func (p proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Proxy-Authorization") != p.authorization {
		w.Header().Set("Proxy-Authenticate", "Basic realm=lab")
		http.Error(w, "who are you?", http.StatusProxyAuthRequired)
		return
	}
	log.Print(r.Method, " ", r.Host)
	_, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		port = "443"
	}
	here := net.JoinHostPort("127.0.0.1", port)
	if r.Method != http.MethodConnect {
		(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Host = here }}).ServeHTTP(w, r)
		return
	}
	server, err := net.Dial("tcp", here)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer server.Close()
	client, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() {
		io.Copy(server, client)
		server.Close()
	}()
	if p.rate == 0 {
		io.Copy(client, server)
		return
	}
	for {
		if _, err := io.CopyN(client, server, p.rate/pieces); err != nil {
			return
		}
		time.Sleep(time.Second / pieces)
	}
}
