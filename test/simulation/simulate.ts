// Runs the ownership simulation in a process of its own and gives its result. Enters: arguments. Leaves: what it
// prints, also when runs failed.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const MAIN = fileURLToPath(new URL('./ownership/main.ts', import.meta.url))

export async function simulateText(args: string[]): Promise<{ text: string; code: number | null }> {
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', chunk => {
    text += chunk
  })
  const code = await new Promise<number | null>(resolve => child.once('close', resolve))
  return { text, code }
}

/** The JSON object that it prints. */
export async function simulate<T>(args: string[]): Promise<T> {
  const { text, code } = await simulateText([...args, '--json'])
  if (text === '') throw new Error(`the simulation ended with ${code} and no result`)
  return JSON.parse(text) as T
}
