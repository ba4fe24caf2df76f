// Guest memory between two QEMUs of qemu.ts (edge-node/migration/memory-path.ts): sockets in memory, and pages that
// cost nothing.
import type { Socket } from 'node:net'
import type { MemoryPath } from '../../../../edge-node/migration/memory-path.ts'
import { createApplier } from './apply.ts'
import { connectUnix, listenUnix } from './net.ts'
import { createParser } from './parse.ts'
import { createPipeline } from './pipeline.ts'

export const memoryPath: MemoryPath = {
  async listenForQemu(path) {
    const { connection, close } = await listenUnix(path)
    return { connection: connection as unknown as Promise<Socket>, close }
  },
  connectToQemu: path => connectUnix(path) as unknown as Promise<Socket>,
  createParser: events => createParser(events) as ReturnType<MemoryPath['createParser']>,
  createPipeline,
  createApplier,
  closeMemory: () => {},
}
