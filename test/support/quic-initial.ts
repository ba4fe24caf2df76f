// First datagrams of QUIC clients that never go on: what a stranger sends to hold places at a QUIC server. Enters:
// where. Leaves: datagrams sent from one address. Each is a whole, correctly protected Initial packet (RFC 9001,
// section 5 and A.2) with a PING in it and no ClientHello.
import { createCipheriv, createHmac, randomBytes } from 'node:crypto'
import { createSocket, type Socket } from 'node:dgram'

const INITIAL_SALT = Buffer.from('38762cf7f55934b34d179ae6a4c80cadccbb7f0a', 'hex')
const DATAGRAM_BYTES = 1200
const TAG_BYTES = 16
const PING = 0x01

const hmac = (key: Buffer, data: Buffer) => createHmac('sha256', key).update(data).digest()

/** HKDF-Expand-Label of TLS 1.3, for at most one block. */
function expandLabel(secret: Buffer, label: string, bytes: number): Buffer {
  const name = Buffer.from(`tls13 ${label}`)
  const info = Buffer.concat([Buffer.of(0, bytes, name.length), name, Buffer.of(0)])
  return hmac(secret, Buffer.concat([info, Buffer.of(1)])).subarray(0, bytes)
}

/** One Initial packet of 1200 bytes with fresh connection ids. */
export function quicInitial(): Buffer {
  const destination = randomBytes(8)
  const secret = expandLabel(hmac(INITIAL_SALT, destination), 'client in', 32)
  const [key, iv, hp] = [expandLabel(secret, 'quic key', 16), expandLabel(secret, 'quic iv', 12), expandLabel(secret, 'quic hp', 16)]
  const numberBytes = 4
  const head = Buffer.concat([Buffer.of(0xc0 | (numberBytes - 1), 0, 0, 0, 1, 8), destination, Buffer.of(8), randomBytes(8), Buffer.of(0)])
  const length = DATAGRAM_BYTES - head.length - 2
  const header = Buffer.concat([head, Buffer.of(0x40 | (length >> 8), length & 0xff), Buffer.alloc(numberBytes)])
  const payload = Buffer.alloc(length - numberBytes - TAG_BYTES)
  payload[0] = PING
  const cipher = createCipheriv('aes-128-gcm', key, iv)
  cipher.setAAD(header)
  const sealed = Buffer.concat([cipher.update(payload), cipher.final(), cipher.getAuthTag()])
  const mask = createCipheriv('aes-128-ecb', hp, null).update(sealed.subarray(0, 16))
  header[0]! ^= mask[0]! & 0x0f
  for (let i = 0; i < numberBytes; i++) header[header.length - numberBytes + i]! ^= mask[1 + i]!
  return Buffer.concat([header, sealed])
}

/** Sends `count` of them from one socket. The caller closes the socket. */
export async function floodInitials(port: number, count: number, make = quicInitial): Promise<Socket> {
  const socket = createSocket('udp4')
  socket.on('error', () => {})
  for (let i = 0; i < count; i++) {
    const packet = make()
    await new Promise<void>(resolve => socket.send(packet, port, '127.0.0.1', () => resolve()))
  }
  return socket
}

/** Sends about `perSecond` of them from `address` until the signal. */
export async function floodSteadily(port: number, address: string, perSecond: number, signal: AbortSignal): Promise<void> {
  const socket = createSocket('udp4')
  socket.on('error', () => {})
  await new Promise<void>(resolve => socket.bind(0, address, resolve))
  const beganMs = performance.now()
  for (let sent = 0; !signal.aborted; ) {
    for (const due = ((performance.now() - beganMs) * perSecond) / 1000; sent < due; sent++) socket.send(quicInitial(), port, '127.0.0.1')
    await new Promise(resolve => setTimeout(resolve, 10))
  }
  socket.close()
}
