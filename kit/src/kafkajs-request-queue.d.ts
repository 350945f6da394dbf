declare module 'kafkajs/src/network/requestQueue/index.js' {
  /** Internal to kafkajs: the part of it that `kafka.ts` mends. */
  export default class RequestQueue {
    constructor(options: object)
    readonly pending: readonly unknown[]
    readonly throttleCheckTimeoutId: NodeJS.Timeout | null
    checkPendingRequests(): void
    scheduleCheckPendingRequests(): void
  }
}
