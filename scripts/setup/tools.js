// Shared by the steps of set-up: running a command with its output recorded, finding programs, one set-up at a time.
// Plain JavaScript: it runs on the Node 20 of a fresh Debian 12, before anything is installed. Always holds: a failed
// command shows the end of its output.
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { accessSync, appendFileSync, constants, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../..', import.meta.url))
export const cache = join(root, '.cache')
const logFile = join(cache, 'setup.log')
const TAIL_LINES = 25
const LOG_BYTES_MAX = 4 * 1024 * 1024
const LOCK_WAIT_MS = 20 * 60_000

/** A missing requirement that set-up cannot install: its name, and advice. */
export class Missing extends Error {
  constructor(what, help) {
    super(what)
    this.help = help
  }
}

let verbose = false
export const setVerbose = value => {
  verbose = value
}
export const say = text => console.log(`setup: ${text}`)
export const whisper = text => {
  if (verbose) say(text)
}

/** Path of a program on PATH, or undefined. */
export function findProgram(name) {
  if (name.includes('/')) return existsSync(name) ? name : undefined
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    const path = join(folder || '.', name)
    try {
      accessSync(path, constants.X_OK)
      if (statSync(path).isFile()) return path
    } catch {
      // Not in this folder.
    }
  }
  return undefined
}

/**
 * Runs a program to its end. Returns { code, output }; output (both streams) also goes to .cache/setup.log. Never
 * rejects.
 */
export function attempt(program, args, { env = {}, cwd = root, timeoutMs = 15 * 60_000 } = {}) {
  mkdirSync(cache, { recursive: true })
  if (existsSync(logFile) && statSync(logFile).size > LOG_BYTES_MAX) rmSync(logFile)
  appendFileSync(logFile, `$ ${program} ${args.join(' ')}\n`)
  return new Promise(resolve => {
    const child = spawn(program, args, { cwd, env: { ...process.env, LC_ALL: 'C', ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    const take = text => {
      output += text
      appendFileSync(logFile, text)
      if (verbose) process.stdout.write(text)
    }
    const timer = setTimeout(() => {
      take(`\nended after ${timeoutMs / 60_000} minutes\n`)
      child.kill('SIGKILL')
    }, timeoutMs)
    child.stdout.setEncoding('utf8').on('data', take)
    child.stderr.setEncoding('utf8').on('data', take)
    const end = code => {
      clearTimeout(timer)
      resolve({ code, output })
    }
    child.on('error', error => {
      output += error.message
      end(127)
    })
    child.on('close', code => end(code ?? 1))
  })
}

/** The end of a program's output, marked as such. */
export const tailOf = output => output.trimEnd().split('\n').slice(-TAIL_LINES).join('\n').replace(/^/gm, '  | ')

/** Like attempt, but a failure throws Missing with the end of the output and `help`. Returns the output. */
export async function must(program, args, what, help, options) {
  const { code, output } = await attempt(program, args, options)
  if (code === 0) return output
  throw new Missing(what, `'${[program, ...args.slice(0, 2)].join(' ')}' failed (exit code ${code}):\n${tailOf(output)}\n${help}`)
}

/** SHA-256 over files, in hex; a missing file counts as empty. */
export function hashFiles(paths) {
  const hash = createHash('sha256')
  for (const path of paths) {
    const content = existsSync(path) ? readFileSync(path) : Buffer.alloc(0)
    hash.update(`${content.length}\n`).update(content)
  }
  return hash.digest('hex')
}

export const readText = path => (existsSync(path) ? readFileSync(path, 'utf8') : '')

const isAlive = pid => {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error.code === 'EPERM'
  }
}

/** Runs `work` while no other set-up of this folder runs. The lock of a dead process is replaced. */
export async function alone(work) {
  const lock = join(cache, 'setup.lock')
  const holder = join(lock, 'pid')
  mkdirSync(cache, { recursive: true })
  const end = Date.now() + LOCK_WAIT_MS
  for (let told = false; ; ) {
    try {
      mkdirSync(lock)
      writeFileSync(holder, String(process.pid))
      break
    } catch (error) {
      if (error.code !== 'EEXIST') throw error
    }
    const pid = Number(readText(holder))
    const ageMs = existsSync(lock) ? Date.now() - statSync(lock).mtimeMs : 0
    if (pid ? !isAlive(pid) : ageMs > 10_000) {
      rmSync(lock, { recursive: true, force: true })
      continue
    }
    if (Date.now() > end) throw new Missing('another setup of this folder is still at work', `End process ${pid}, or remove ${lock}.`)
    if (!told) say('another setup of this folder is at work: waiting for it')
    told = true
    await new Promise(resolve => setTimeout(resolve, 500))
  }
  try {
    return await work()
  } finally {
    rmSync(lock, { recursive: true, force: true })
  }
}
