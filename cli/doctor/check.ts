// The result of one check of `godwit doctor`. Types only.
type CheckState = 'ok' | 'warn' | 'fail'
export type Check = { name: string; state: CheckState; detail: string; advice?: string }
