import { once } from 'node:events'
import * as net from 'node:net'
import type { NodeConfig } from '../../edge-node/config.ts'
import { dataEngines } from '../../edge-node/dial.ts'
import { bulkOf, carrierOf } from '../../transport/bulk.ts'
import { loadTcpInfo, preferBbr, tcpPath } from '../../transport/tcp-info.ts'
import type { Connection, Engine, EngineName, PathStats } from '../../transport/types.ts'
import { placingOf } from '../../wire/roles.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('transport: bulk')
const end = (engine: EngineName, stats: PathStats) => ({ connection: { engine, stats: () => stats } as Connection })

test('bulk goes over BBR where it is, else over QUIC, else over what there is', () => {
  const [quic, bbr, cubic] = [end('quic', { congestion: 'cubic' }), end('tls', { congestion: 'bbr' }), end('tls', { congestion: 'cubic' })]
  const unknown = end('webtransport', {})
  assert.equal(bulkOf([quic, bbr, cubic, bbr]), [bbr, bbr])
  assert.equal(bulkOf([cubic, quic, unknown]), [quic])
  assert.equal(bulkOf([cubic, unknown]), [cubic, unknown])
  assert.equal(bulkOf([]), [])
})

test('page streams are spread over bulk; the hand-over goes beside the heartbeats, but over BBR where that is', () => {
  const [control, quic, bbr] = [
    end('quic', { congestion: 'cubic' }),
    end('quic', { congestion: 'cubic' }),
    end('tls', { congestion: 'bbr' }),
  ]
  assert.is(carrierOf(placingOf(0), control, []), control)
  assert.is(carrierOf(placingOf(3), control, []), control)
  assert.is(carrierOf(placingOf(0), control, [quic]), control)
  assert.is(carrierOf(placingOf(1), control, [quic]), quic)
  assert.is(carrierOf(placingOf(0), control, [quic, bbr]), bbr)
  assert.is(carrierOf(placingOf(5), control, [quic, bbr]), bbr)
})

test('a node keeps a TLS connection for bulk beside QUIC where it may choose and TLS is there', () => {
  const engines = [{ name: 'quic' }, { name: 'tls' }] as Engine[]
  const config = (transport: string, tls: number | 'off') => ({ transport, gateway: { ports: { tls } } }) as unknown as NodeConfig
  assert.equal(dataEngines(config('auto', 7443), engines), [undefined, 'tls'])
  assert.equal(dataEngines(config('auto', 'off'), engines), [undefined])
  assert.equal(dataEngines(config('quic', 7443), engines), [undefined])
  assert.equal(dataEngines(config('auto', 7443), engines.slice(0, 1)), [undefined])
})

test('the kernel tells the path of a TCP socket, and which congestion control it has', async () => {
  if (!(await loadTcpInfo())) return
  const server = net.createServer(socket => socket.pipe(socket)).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const socket = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1')
  try {
    await once(socket, 'connect')
    assert.match(preferBbr(socket) ?? '', /^[a-z0-9_]+$/)
    socket.write(Buffer.alloc(10_000))
    await once(socket, 'data')
    const path = tcpPath(socket)!
    assert.ok(path.sentPackets > 0 && path.lostPackets >= 0 && path.congestionWindowBytes > 1000)
    assert.ok(path.rttMs > 0 && path.rttMs < 1000 && path.rttMinMs <= 1000)
  } finally {
    socket.destroy()
    server.close()
  }
  assert.is(tcpPath(socket), undefined)
  assert.is(preferBbr(socket), undefined)
})

test.run()
