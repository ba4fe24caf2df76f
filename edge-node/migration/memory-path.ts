// How guest memory gets from one QEMU to the other, as one plain type: the sockets of both QEMUs, what reads the
// source's stream, what sends pages and what puts them into guest memory.
// Always holds: a migration touches guest memory by this type alone; here it is QEMU's (qemuMemoryPath), and the
// ownership simulation passes its own. outgoing.ts and incoming.ts keep the order of all bytes, whatever the path.
import { closeSync } from 'node:fs'
import { lchown, rm, stat } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { dirname } from 'node:path'
import { type Applier, type ApplierOptions, createApplier } from '../pages/apply.ts'
import { createPipeline, type Pipeline, type PipelineOptions } from '../pages/pipeline.ts'
import { connectUnix } from '../qmp/socket.ts'
import { createParser } from '../stream/parse.ts'

export type MemoryPath = {
  /** A unix socket that takes exactly one connection: QEMU's. It is gone when close() resolves. */
  listenForQemu(path: string): Promise<{ connection: Promise<Socket>; close(): Promise<void> }>
  /** To the socket of a QEMU that waits for a migration. QEMU_TIMEOUT. */
  connectToQemu(path: string): Promise<Socket>
  createParser: typeof createParser
  createPipeline(options: PipelineOptions): Pipeline
  createApplier(options: ApplierOptions): Applier
  /** Of a descriptor that RunningVm.memoryFd gave. */
  closeMemory(fd: number): void
}

const CONNECT_TIMEOUT_MS = 10_000

export const qemuMemoryPath: MemoryPath = {
  listenForQemu,
  connectToQemu: path => connectUnix(path, CONNECT_TIMEOUT_MS, { code: 'QEMU_TIMEOUT' }),
  ...{ createParser, createPipeline, createApplier },
  closeMemory: closeSync,
}

async function listenForQemu(path: string): ReturnType<MemoryPath['listenForQemu']> {
  await rm(path, { force: true })
  const server = createServer({ allowHalfOpen: true })
  const connection = new Promise<Socket>(resolve => {
    server.once('connection', socket => {
      server.close()
      resolve(socket)
    })
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    // It is made within this call, so the mask is for it alone.
    const before = process.umask(0o177)
    server.listen(path, () => resolve())
    process.umask(before)
  })
  // Who connects must be able to write to it, and is whoever owns the folder; QEMU could put a link in its place,
  // which must not be followed.
  const { uid, gid } = await stat(dirname(path))
  await lchown(path, uid, gid)
  return {
    connection,
    async close() {
      server.close()
      await rm(path, { force: true })
    },
  }
}
