// One end of the cold variant `zstd | socket`: node cold-pipe.ts source|target HOST PORT SOCKET [LEVEL]. The source
// reads QEMU's stream from a unix socket, compresses it and sends it over one TCP connection; the target does the
// reverse. The return path is not transferred: both ends see the end of the stream.
import { connect, createServer, type Socket } from 'node:net'
import { pipeline } from 'node:stream/promises'
import { constants, createZstdCompress, createZstdDecompress } from 'node:zlib'

const [role, host = '', port = '', path = '', level = '3'] = process.argv.slice(2)
const ready = () => process.send?.('ready')

async function send(qemu: Socket): Promise<void> {
  const wire = connect(Number(port), host)
  const params = { [constants.ZSTD_c_compressionLevel]: Number(level) }
  await pipeline(qemu, createZstdCompress({ params }), wire)
}

async function receive(wire: Socket): Promise<void> {
  await pipeline(wire, createZstdDecompress(), connect(path))
}

if (role === 'source') createServer({ allowHalfOpen: true }, qemu => void send(qemu).catch(console.error)).listen(path, ready)
else createServer({ allowHalfOpen: true }, wire => void receive(wire).catch(console.error)).listen(Number(port), host, ready)
