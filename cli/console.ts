// A terminal on the serial port of a guest. Bytes pass unchanged in both directions; only Ctrl-] (0x1d) has a meaning
// here: it exits.
import { type JsonRequest, requestUpgrade } from '../ops/http-client.ts'
import type { Io } from './io.ts'

const LEAVE = 0x1d

/** Ends when the guest's console ends, at Ctrl-], or at the end of stdin when that is no terminal. */
export async function attachConsole(io: Io, request: JsonRequest): Promise<number> {
  const socket = await requestUpgrade(request)
  const { input, output } = io
  if (input.isTTY) io.err('connected; Ctrl-] exits\n')
  input.setRawMode?.(true)
  try {
    await new Promise<void>((resolve, reject) => {
      socket.on('data', (bytes: Buffer) => {
        if (!output.write(bytes)) {
          socket.pause()
          output.once('drain', () => socket.resume())
        }
      })
      socket.once('end', resolve)
      socket.once('close', resolve)
      socket.once('error', reject)
      input.on('data', (chunk: Buffer | string) => {
        const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : chunk
        const leaveAt = input.isTTY ? bytes.indexOf(LEAVE) : -1
        socket.write(leaveAt < 0 ? bytes : bytes.subarray(0, leaveAt))
        if (leaveAt >= 0) resolve()
      })
      input.once('end', () => socket.end())
      if (input.isTTY) io.onInterrupt(() => resolve())
    })
  } finally {
    input.setRawMode?.(false)
    input.removeAllListeners('data')
    input.pause()
    socket.destroy()
    if (input.isTTY) io.err('\ndisconnected\n')
  }
  return 0
}
