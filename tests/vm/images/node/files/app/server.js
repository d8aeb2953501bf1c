// Answers each request with its path, and ends in order when it is told to.
const http = require('http')
const server = http.createServer((request, response) => response.end(`${process.version} ${request.url} pid ${process.pid}\n`))
server.listen(process.env.PORT, () => console.log(`listening on ${process.env.PORT}`))
process.on('SIGTERM', () => { console.log('closing'); server.close(() => process.exit(0)) })
