// Command webserver serves the files of a directory by TLS, and plain.aci by a redirect to plain text.
package main

import (
	"log"
	"net/http"
	"os"
)

func main() {
	dir, certificate, key := os.Args[1], os.Args[2], os.Args[3]
	http.Handle("/", http.FileServer(http.Dir(dir)))
	http.Handle("/plain.aci", http.RedirectHandler("http://app.test/tiny-1.0-linux-amd64.aci", http.StatusFound))
	log.Fatal(http.ListenAndServeTLS("127.0.0.1:443", certificate, key, nil))
}
